# The sandbox of test/run and examples/demo/run; to be sourced by them.
#
# Nothing may be installed into the system's PostgreSQL, nothing may run as
# root, nothing may stay behind. So all happens in one temporary directory:
#
#   src     a copy of the checkout, built there: the checkout may be read-only,
#           and runs do not meet
#   pg      a relocated copy of the server; the extension is installed there
#   data    a cluster that listens on a socket in this directory, nowhere else
#
# "sandbox SCRIPT ARGUMENT..." is called once. Outside, with the rights of the
# caller, it installs what is missing, copies the checkout, runs the script once
# more inside, as an unprivileged user, and clears up. Inside, it returns.
#
# PG_CONFIG chooses the server; KEEP=1 keeps the directory. NEED_TAP, NEED_PYTHON,
# NEED_NODE (module@version ...) and NEED_TOOLS (program:package or /file:package ...) say what a
# script needs besides the server; PASS names the variables of the caller that it wants to
# see inside. What it leaves in the directory results, beside src, is copied to RESULTS,
# if that is set.

set -euo pipefail

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

say() { printf '%s\n' "$*"; }
die() { say "$0: $*" >&2; exit 1; }

sandbox()
{
	local script=$1 base=${TMPDIR:-/tmp} status=0 name pass=()
	shift

	if [ -n "${SANDBOX:-}" ]; then
		# from the start, so that nothing can go to another server
		export PGHOST=$SANDBOX PGUSER=postgres PGDATABASE=postgres
		export NODE_PATH=${NODE_PATH:-$SANDBOX/node_modules:/usr/share/nodejs}
		cd "$SANDBOX/src"
		return
	fi

	provide
	as_user=()
	if [ "$(id -u)" -eq 0 ]; then
		as_user=(setpriv --reuid=nobody --regid="$(id -g nobody)" --clear-groups)
	fi

	# A socket's path is short (107 bytes), and the user must get there.
	if [ ${#base} -gt 40 ] || ! "${as_user[@]}" test -w "$base" -a -x "$base"; then
		base=/tmp
	fi
	trap '' HUP INT TERM	# for a moment: until there is something to stop
	tmp=$(cd / && "${as_user[@]}" mktemp -d "$base/idem.XXXXXX")
	trap clear_up EXIT
	cd "$tmp"
	"${as_user[@]}" mkdir src
	list_checkout |
		tar -C "$ROOT" --null -T - --ignore-failed-read --warning=none -cf - |
		"${as_user[@]}" tar -C src -xf -
	trap 'stop 129' HUP
	trap 'stop 130' INT
	trap 'stop 143' TERM
	[ -z "${NEED_NODE:-}" ] || ! node_is_foreign || fetch_modules

	# A process group of its own, so that all of it can be stopped; in the
	# background, because bash runs no trap while it waits for the foreground.
	for name in ${PASS:-}; do
		pass+=("$name=${!name:-}")
	done
	set -m
	"${as_user[@]}" env -i SANDBOX="$tmp" HOME="$tmp" TMPDIR="$tmp" LC_ALL=C \
		PATH="$PATH" LD_LIBRARY_PATH="${LD_LIBRARY_PATH:-}" \
		PG_CONFIG="$PG_CONFIG" KEEP="${KEEP:-}" "${pass[@]}" \
		bash "src/$script" "$@" </dev/null &
	child=$!
	set +m
	wait "$child" || status=$?
	[ -z "${RESULTS:-}" ] || [ ! -d results ] || bring_results ||
		say "cannot write the results to $RESULTS" >&2
	exit "$status"
}

bring_results()
{
	mkdir -p "$RESULTS" && "${as_user[@]}" tar -C results -cf - . |
		tar -C "$RESULTS" --no-overwrite-dir --no-same-owner -xf -
}

# What git knows of or would, so that no build product comes along; without
# git, a fair guess at the same.
list_checkout()
{
	if [ -e "$ROOT/.git" ] && command -v git >/dev/null; then
		git -c safe.directory='*' -C "$ROOT" \
			ls-files -z --cached --others --exclude-standard
	else
		(cd "$ROOT" && find . -name .git -prune -o -type f ! -name '*.o' \
			! -name '*.bc' ! -name '*.so' \( ! -path './sql/idempotency--*' -o -path './sql/idempotency--*--*' \) -print0)
	fi
}

# A second signal, such as timeout sends, must not end the clearing up.
stop()
{
	trap '' HUP INT TERM
	exit "$1"
}

clear_up()
{
	local file pid

	set +e
	trap '' HUP INT TERM
	[ -z "${child:-}" ] || { kill -TERM -- "-$child" && wait "$child"; }
	# Postmasters leave the process group. After a crash the pid may be stale:
	# its working directory tells whether it is still the one.
	find "$tmp" -name postmaster.pid | while read -r file; do
		read -r pid <"$file" || continue
		[ ! -e /proc/self ] || [ "/proc/$pid/cwd" -ef "${file%/*}" ] || continue
		"${as_user[@]}" bash -c "kill -QUIT $pid" || continue
		for _ in {1..100}; do
			[ -e "$file" ] || break
			sleep 0.1
		done
	done
	[ -z "${KEEP:-}" ] || return
	# somebody may still be writing with his last breath
	for _ in {1..50}; do
		rm -rf "$tmp" && break
		sleep 0.1
	done
} 2>/dev/null

#
# Outside: packages
#

# Finds the server, and installs what is missing. $major stands for Debian's
# packages; a server that comes from elsewhere is its owner's business.
provide()
{
	bindir=$("${PG_CONFIG:-pg_config}" --bindir 2>/dev/null) ||
		bindir=${PG_CONFIG:+$(dirname "$PG_CONFIG")}
	: "${bindir:=$(find /usr/lib/postgresql/*/bin -prune 2>/dev/null | sort -V | tail -n 1)}"
	: "${bindir:=/usr/lib/postgresql/15/bin}"
	major=
	[[ ! $bindir =~ ^/usr/lib/postgresql/([0-9]+)/bin$ ]] || major=${BASH_REMATCH[1]}
	[ -n "$major" ] || [ -e "$("$bindir/pg_config" --pgxs 2>/dev/null)" ] ||
		die "no server with PGXS in $bindir"

	sudo=
	[ "$(id -u)" -eq 0 ] || ! command -v sudo >/dev/null || sudo=sudo
	lacking=$(missing)
	[ -z "$lacking" ] || install_packages
	[ -z "$lacking" ] || die "missing packages: $lacking"
	PG_CONFIG=$bindir/pg_config
}

# The packages that this run needs and this machine lacks, in one line.
missing()
{
	local tool

	{
		command -v make >/dev/null || say make
		{ command -v cc && command -v nm; } >/dev/null || say gcc
		[ -e /usr/include/stdio.h ] || say libc6-dev
		[ -x "$bindir/postgres" ] || say "postgresql-$major"
		# the client's package brings the makefiles, but not the headers
		{ [ -e "$("$bindir/pg_config" --pgxs)" ] &&
			[ -e "$("$bindir/pg_config" --includedir-server)/postgres.h" ]; } ||
			say "postgresql-server-dev-$major"
		if [ -n "${NEED_TAP:-}" ]; then
			[ -z "$major" ] ||
				[ -e "/usr/share/postgresql/$major/extension/pgtap.control" ] ||
				say "postgresql-$major-pgtap"
			perl -MIPC::Run -e 1 || say libipc-run-perl
			command -v prove >/dev/null || say perl
			[ -z "$major" ] || [ -x /usr/sbin/pgbouncer ] || say pgbouncer
		fi
		if [ -n "${NEED_PYTHON:-}" ]; then
			# Debian's, whatever else is called python3 here
			/usr/bin/python3 -c 'import psycopg2' || say python3 python3-psycopg2
		fi
		if [ -n "${NEED_NODE:-}" ] && ! node_is_foreign; then
			command -v node >/dev/null || say nodejs
			for tool in $NEED_NODE; do
				[ -e "/usr/share/nodejs/${tool%@*}" ] || say "node-${tool%@*}"
			done
		fi
		for tool in ${NEED_TOOLS:-}; do
			case $tool in
				/*) [ -e "${tool%%:*}" ] ;;
				*) command -v "${tool%%:*}" >/dev/null ;;
			esac || say "${tool#*:}"
		done
	} 2>/dev/null | xargs
}

install_packages()
{
	local conf=/etc/postgresql-common/createcluster.d/idempotency-test.conf
	local policy=/usr/sbin/policy-rc.d made='' unit

	command -v apt-get >/dev/null || return 0
	[ "$(id -u)" -eq 0 ] || [ -n "$sudo" ] || return 0
	$sudo apt-get -qq update || :
	if ! [ -x "$bindir/postgres" ] && ! apt-cache show "postgresql-$major" >/dev/null 2>&1; then
		major=$(apt-cache search --names-only '^postgresql-[0-9]+$' |
			sed 's/^postgresql-//; s/ .*//' | sort -n | tail -n 1)
		bindir=/usr/lib/postgresql/$major/bin
		lacking=$(missing)
	fi
	say "installing $lacking"
	(
		# A new server package makes and starts a cluster, unless told not to,
		# and a pooler's starts its daemon, unless policy forbids it.
		[ -e "$policy" ] || made=$policy
		trap '$sudo rm -f "$conf" ${made:+"$made"}' EXIT
		trap 'exit 1' HUP INT TERM
		$sudo mkdir -p "${conf%/*}"
		say "create_main_cluster = false" | $sudo tee "$conf" >/dev/null
		if [ -n "${made:-}" ]; then
			printf '#!/bin/sh\nexit 101\n' | $sudo tee "$made" >/dev/null
			$sudo chmod +x "$made"
		fi
		# shellcheck disable=SC2086  # a list
		log=$($sudo env DEBIAN_FRONTEND=noninteractive LC_ALL=C apt-get -qq -y \
			--no-install-recommends install $lacking 2>&1 </dev/null) || say "$log" >&2
		# and not at the next boot, either
		for unit in pgbouncer prometheus prometheus-postgres-exporter; do
			[[ " $lacking " != *" $unit "* ]] || ! command -v systemctl >/dev/null ||
				$sudo systemctl --quiet disable "$unit" >/dev/null 2>&1 || :
		done
	)
	lacking=$(missing)
}

# Debian's modules can be installed beside Debian's node only.
node_is_foreign()
{
	command -v node >/dev/null && [[ $(dpkg-query -W -f '${Version}' nodejs 2>/dev/null) != *dfsg* ]]
}

# Beside another one, npm brings them; it keeps them in its cache.
fetch_modules()
{
	local log modules

	modules=$(mktemp -d)
	# shellcheck disable=SC2086  # a list
	log=$(cd "$modules" && npm install --no-save --no-package-lock --ignore-scripts --prefer-offline \
		--no-audit --no-fund --loglevel=error $NEED_NODE 2>&1 </dev/null) ||
		{ say "$log" >&2; rm -rf "$modules"; die "cannot fetch $NEED_NODE from npm"; }
	tar -C "$modules" -cf - node_modules | "${as_user[@]}" tar -C "$tmp" -xf -
	rm -rf "$modules"
}

#
# Inside: server
#

# PostgreSQL finds its libraries and data from the place of its own binary, as
# long as the layout is the one it was built for. So the binaries are copied
# (links would be followed), what they read is linked, and the directories are
# real: there "make install" puts the extension.
make_server()
{
	local pg=$SANDBOX/pg bin share lib dir

	bin=$("$PG_CONFIG" --bindir)
	share=$("$PG_CONFIG" --sharedir)
	lib=$("$PG_CONFIG" --pkglibdir)
	mkdir -p "$pg$bin" "$pg$share" "$pg$lib"
	cp -RL "$bin/." "$pg$bin"
	cp -Rs "$share/." "$pg$share"
	cp -Rs "$lib/." "$pg$lib"
	# the extension may be installed in the system, too
	rm -rf "$pg$share/extension/idempotency"[.-]* "$pg$lib/idempotency.so" \
		"$pg$lib/bitcode/idempotency"*
	for dir in --includedir --pkgincludedir --includedir-server --libdir; do
		dir=$("$PG_CONFIG" "$dir")
		[ ! -e "$dir" ] || [ -e "$pg$dir" ] ||
			{ mkdir -p "$pg${dir%/*}" && ln -s "$dir" "$pg$dir"; }
	done

	PATH=$pg$bin:$PATH
	PKGLIBDIR=$pg$lib
	[ "$("$pg$bin/pg_config" --pkglibdir)" = "$PKGLIBDIR" ] ||
		die "cannot relocate the server in $bin"
	pgmake=(make -s --no-print-directory PG_CONFIG="$pg$bin/pg_config")
}

build_extension()
{
	"${pgmake[@]}" -j"$(nproc)" all install >"$SANDBOX/build.log" 2>&1 ||
		{ cat "$SANDBOX/build.log"; return 1; }
}

start_server()
{
	if initdb -D "$SANDBOX/data" -U postgres -A trust -E UTF8 --no-locale -N \
		>"$SANDBOX/server.log" 2>&1 &&
		printf '%s\n' "listen_addresses = ''" "unix_socket_directories = '$SANDBOX'" \
			'fsync = off' 'max_prepared_transactions = 20' \
			>>"$SANDBOX/data/postgresql.conf" &&
		pg_ctl -D "$SANDBOX/data" -l "$SANDBOX/server.log" -s -w start
	then
		[ "$(psql -XAtc "SELECT setting FROM pg_config WHERE name = 'PKGLIBDIR'")" = "$PKGLIBDIR" ] ||
			die "the server does not load from $PKGLIBDIR"
	else
		cat "$SANDBOX/server.log"
		return 1
	fi
}
