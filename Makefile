# idempotency: claim a key, do the work, finish with a response; once.
#
#   make, make install, make installcheck    as with any PGXS extension
#   make test                                the whole suite in a cluster of its own
#   make torture                             many clients, and all that can go wrong
#   make check-all                           that, and other servers, analyses, a model
#   make demo                                the extension at work, in a cluster of its own
#   make bench                               what it costs, beside what people write by hand
#   make bench-peers                         and beside its peers, which it fetches
#
# From "make test" on they install what they miss (root or sudo), run as an
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

PG_CPPFLAGS = -DIDEM_VERSION='"$(EXTVERSION)"'
# PostgreSQL's own headers have parameters that they do not use.
PG_CFLAGS   = -Wall -Wextra -Werror -Wno-unused-parameter
ifneq (,$(findstring clang,$(CC)))
# The server may have been configured for gcc: its flags, its printf attribute.
PG_CFLAGS  += -Wno-unknown-warning-option -Wno-ignored-optimization-argument \
               -Wno-ignored-attributes
endif

REGRESS     = $(patsubst sql/%.sql,%,$(filter-out $(SCRIPT),$(sort $(wildcard sql/*.sql))))
ISOLATION   = $(patsubst test/isolation/specs/%.spec,%,$(sort $(wildcard test/isolation/specs/*.spec)))
ISOLATION_OPTS = --inputdir=test/isolation --outputdir=test/isolation/output

EXTRA_CLEAN = $(SCRIPT) results output_iso test/isolation/output

# What comes before there is a PostgreSQL.
BARE        = test torture check-all demo bench bench-peers
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

.PHONY: $(BARE)
