# Thin names over scripts/. PG_MAJOR (15) or PG_CONFIG choose the server.

.PHONY: help demo demo-stop test test-postgres bench-capture bench-ingest bench-jobs bench-partitions install installcheck lint clean distclean

help:
	@echo 'make demo          build, start a server of its own, load events, show what the extension does'
	@echo 'make demo-stop     stop that server'
	@echo 'make test          lint, unit tests, tests in the server, pg_regress, end to end'
	@echo 'make test-postgres the regression suite of PostgreSQL itself, without and with the library: same results; some 2 minutes'
	@echo 'make bench-capture query capture beside pg_stat_statements and auto_explain: instructions and rates, some 15 minutes;'
	@echo '                   needs valgrind'
	@echo 'make bench-ingest  events beside plain INSERT and COPY: figures and ratios, some 10 minutes'
	@echo 'make bench-jobs    jobs beside pg_cron: figures and ratios, some 10 minutes'
	@echo 'make bench-partitions'
	@echo '                   partitions beside plain SQL and pg_partman: figures and ratios, some 20 minutes'
	@echo 'make install       release build into the server of PG_CONFIG'
	@echo 'make installcheck  pg_regress against a running server (PGHOST, PGPORT, PGUSER)'
	@echo 'make lint          format, clippy, shellcheck'
	@echo 'make clean         stop our servers; remove target, .run, .pg'
	@echo 'make distclean     also remove .pgrx and .tools'

demo:
	@scripts/demo.sh

demo-stop:
	@scripts/demo-stop.sh

test:
	@scripts/test.sh

test-postgres:
	@scripts/test-postgres.sh

bench-capture:
	@scripts/bench.sh capture

bench-ingest:
	@scripts/bench.sh ingest

bench-jobs:
	@scripts/bench.sh jobs

bench-partitions:
	@scripts/bench.sh partitions

install:
	@scripts/install.sh

installcheck:
	@scripts/installcheck.sh

lint:
	@scripts/lint.sh

clean:
	@scripts/clean.sh

distclean:
	@scripts/clean.sh --all
