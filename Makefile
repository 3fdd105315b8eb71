# idempotency: claim a key, do the work, finish with a response; once.
#
#   make, make install, make installcheck    as with any PGXS extension
#   make test                                the whole suite in a cluster of its own
#   make torture                             many clients, and all that can go wrong
#   make check-all                           that, and other servers, analyses, a model
#   make demo                                the extension at work, in a cluster of its own
#   make bench                               what it costs, beside what people write by hand
#   make bench-peers                         and beside its peers, which it fetches
#   make dist                                idempotency-VERSION.zip of what is committed
#
# From "make test" to "make bench-peers" they install what they miss (root or sudo), run as an
# unprivileged user on a socket of their own, and clean up behind themselves.

EXTENSION   = idempotency
EXTVERSION := $(shell sed -n "s/^default_version *= *'\(.*\)'/\1/p" idempotency.control)
MODULE_big  = idempotency
PGFILEDESC  = "idempotency - create-or-return-existing semantics inside a transaction"

# One room, one object; the order is that of the house, from the door down.
ROOMS       = idempotency janitor breaker http once batch enqueue dequeue ready letter wake \
              message queue finish claim step lookup stats lease pending record memo \
              history store args answer lock key backoff circuit realm counter shmem
OBJS        = $(ROOMS:%=src/%.o)

# The install script is assembled from the rooms' own declarations: tables
# first, then the functions that stand on them, then the views.
SCRIPT      = sql/$(EXTENSION)--$(EXTVERSION).sql
SCRIPT_SRC  = src/idempotency.sql src/realm.sql src/backoff.sql src/key.sql \
              src/record.sql src/memo.sql src/claim.sql src/finish.sql src/lease.sql \
              src/step.sql src/batch.sql src/once.sql src/http.sql src/lookup.sql \
              src/queue.sql src/message.sql src/letter.sql src/enqueue.sql \
              src/dequeue.sql src/breaker.sql src/janitor.sql src/stats.sql \
              src/status.sql src/privileges.sql
DATA_built  = $(SCRIPT)

# From one released version to the next; written by hand.
DATA        = $(sort $(wildcard sql/$(EXTENSION)--*--*.sql))

PG_CPPFLAGS = -DIDEM_VERSION='"$(EXTVERSION)"'
# Packagers want WERROR=, for compilers that are newer than the code. PostgreSQL's
# own headers have parameters that they do not use.
WERROR     ?= -Werror
PG_CFLAGS   = -Wall -Wextra $(WERROR) -Wno-unused-parameter
ifneq (,$(findstring clang,$(CC)))
# The server may have been configured for gcc: its flags, its printf attribute.
PG_CFLAGS  += -Wno-unknown-warning-option -Wno-ignored-optimization-argument \
               -Wno-ignored-attributes
endif

REGRESS     = $(patsubst sql/%.sql,%,$(filter-out sql/$(EXTENSION)--%.sql,$(sort $(wildcard sql/*.sql))))
ISOLATION   = $(patsubst test/isolation/specs/%.spec,%,$(sort $(wildcard test/isolation/specs/*.spec)))
ISOLATION_OPTS = --inputdir=test/isolation --outputdir=test/isolation/output

# also the script of a version that this checkout had before
EXTRA_CLEAN = $(filter-out $(DATA),$(wildcard sql/$(EXTENSION)--*.sql)) \
              results output_iso test/isolation/output

# What comes before there is a PostgreSQL.
BARE        = test torture check-all demo bench bench-peers dist
ifneq ($(filter-out $(BARE), $(or $(MAKECMDGOALS), all)),)
PG_CONFIG  ?= pg_config
PGXS       := $(shell $(PG_CONFIG) --pgxs)
include $(PGXS)
endif

ifeq ($(PORTNAME), linux)
SHLIB_LINK += -Wl,--version-script=src/exports.map
endif

$(OBJS): $(wildcard src/*.h)

$(SCRIPT): $(SCRIPT_SRC) idempotency.control
	mkdir -p $(@D)
	cat $(SCRIPT_SRC) > $@

# Some of the suites, or tests: make test TESTS="pgtap regress:claim"
test:
	@test/run $(TESTS)

# DURATION=3600 for an hour, SEED=… for the same one again
torture:
	@test/run torture

check-all:
	@test/check-all

demo:
	@examples/demo/run

# QUICK=1 for a short form
bench:
	@bench/run $(GROUPS)

bench-peers:
	@bench/peers/run $(PEERS)

# For PGXN, from HEAD. Whatever states a version must state that of the control file.
dist:
	@show() { git show "HEAD:$$1" && echo; }; \
	version=$$(show idempotency.control | sed -n "s/^default_version *= *'\(.*\)'/\1/p"); \
	status=0; \
	expect() { \
		[ "$$2" = "$$version" ] && return; \
		echo "$$1 has version $${2:-(none)}, idempotency.control has $$version" >&2; status=1; \
	}; \
	meta='s/^[[:space:]]*"version": "\([^"]*\)".*/\1/p'; \
	expect "META.json" "$$(show META.json | sed -n '/"meta-spec"/q; /"provides"/q; '"$$meta")"; \
	expect "META.json, provides," "$$(show META.json | sed -n '/"provides"/,/"prereqs"/'"$$meta")"; \
	expect "CHANGELOG.md" "$$(show CHANGELOG.md | sed -n 's/^## \([^ ]*\).*/\1/p' | head -n 1)"; \
	expect "debian/changelog" "$$(show debian/changelog | sed -n '1s/.*(\(.*\)-.*/\1/p')"; \
	[ "$$status" -eq 0 ] && [ -n "$$version" ] || exit 1; \
	[ -z "$$(git status --porcelain)" ] || echo "note: not all is committed; what is not, is not in it" >&2; \
	name=$(EXTENSION)-$$version; \
	git archive --format=zip --prefix="$$name/" -o "$$name.zip" HEAD && echo "$$name.zip"

.PHONY: $(BARE)
