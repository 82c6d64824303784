# make install, make uninstall: rtmpd as a system service. DESTDIR is put before each path, but not written into the files.
PREFIX ?= /usr/local
APPDIR ?= /opt/rtmpd
SYSCONFDIR ?= /etc
BINDIR ?= $(PREFIX)/bin
MANDIR ?= $(PREFIX)/share/man
UNITDIR ?= $(PREFIX)/lib/systemd/system
SYSUSERSDIR ?= $(PREFIX)/lib/sysusers.d
TMPFILESDIR ?= $(PREFIX)/lib/tmpfiles.d
# Decides on Type=notify-reload. For another machine, set the version of its systemd.
SYSTEMD_VERSION ?= $(shell systemctl --version 2>/dev/null | awk 'NR == 1 { print $$2 }')

INI := $(SYSCONFDIR)/rtmpd.ini
# Replaces the default paths in installed files by the actual ones.
PLACES := -e 's|/opt/rtmpd|$(APPDIR)|g' -e 's|/etc/rtmpd\.ini|$(INI)|g'
# Whether the running system, with systemd, is the target.
LIVE := test -z "$(DESTDIR)" && test -d /run/systemd/system

.PHONY: install uninstall

# The environment is built in another directory and moved when it is complete, so that a failure leaves the old one intact.
install:
	@test ! -e "$(DESTDIR)$(APPDIR)" || test -f "$(DESTDIR)$(APPDIR)/pyvenv.cfg" || \
		{ echo "$(DESTDIR)$(APPDIR) is not an environment of rtmpd: set APPDIR" >&2; exit 1; }
	@case "$$($(PYTHON) -c 'import os, sys; print(os.path.realpath(sys.base_prefix))')/" in /home/*|/root/*) \
		echo "a service can't use the Python of a home directory: make install PYTHON=/usr/bin/python3" >&2; exit 1;; esac
	@set -e; umask 022; new="$$(realpath -m "$(DESTDIR)$(APPDIR)").new"; source=$$(mktemp -d); trap 'rm -rf "$$source" "$$new"' EXIT; \
	cp -R rtmpd setup.cfg setup.py pyproject.toml README.rst LICENSE "$$source"; \
	find "$$source" \( -name __pycache__ -o -name _fast.c -o -name "_fast.*.so" \) -prune -exec rm -r {} +; \
	rm -rf "$$new"; mkdir -p "$$(dirname "$$new")"; \
	$(PYTHON) -m venv --prompt rtmpd "$$new"; \
	"$$new/bin/python" -m pip install --quiet --no-compile --disable-pip-version-check "$$source"; \
	grep -rIlF "$$new" "$$new/bin" "$$new/pyvenv.cfg" | xargs sed -i "s|$$new|$(APPDIR)|g"; \
	find "$$new/lib" -name direct_url.json -delete; \
	"$$new/bin/python" -m compileall -q -f -s "$$new" -p "$(APPDIR)" "$$new/lib"; \
	rm -rf "$(DESTDIR)$(APPDIR)"; mv "$$new" "$(DESTDIR)$(APPDIR)"
	@install -d "$(DESTDIR)$(BINDIR)" "$(DESTDIR)$(SYSCONFDIR)" "$(DESTDIR)$(UNITDIR)"
	@ln -sfn "$(APPDIR)/bin/rtmpd" "$(DESTDIR)$(BINDIR)/rtmpd"
	@if test -e "$(DESTDIR)$(INI)"; then \
		if cmp -s etc/rtmpd.ini "$(DESTDIR)$(INI)"; then rm -f "$(DESTDIR)$(INI).new"; else \
			install -m 0644 etc/rtmpd.ini "$(DESTDIR)$(INI).new"; \
			echo "$(INI) is kept; the new default configuration is $(INI).new"; fi; \
	else install -m 0640 etc/rtmpd.ini "$(DESTDIR)$(INI)"; fi
	@sed $(PLACES) $(if $(shell test "$(SYSTEMD_VERSION)" -ge 253 2>/dev/null && echo yes),\
		-e '/^# .*notify-reload/d' -e 's/^Type=notify$$/Type=notify-reload/' -e '/^ExecReload=/d') \
		systemd/rtmpd.service > "$(DESTDIR)$(UNITDIR)/rtmpd.service"
	@chmod 0644 "$(DESTDIR)$(UNITDIR)/rtmpd.service"
	@install -m 0644 systemd/rtmpd.socket systemd/rtmpd-tls.socket "$(DESTDIR)$(UNITDIR)/"
	@install -D -m 0644 systemd/rtmpd.sysusers "$(DESTDIR)$(SYSUSERSDIR)/rtmpd.conf"
	@install -D -m 0644 systemd/rtmpd.tmpfiles "$(DESTDIR)$(TMPFILESDIR)/rtmpd.conf"
	@sed -i $(PLACES) "$(DESTDIR)$(TMPFILESDIR)/rtmpd.conf"
	@install -D -m 0644 man/rtmpd.8 "$(DESTDIR)$(MANDIR)/man8/rtmpd.8"
	@install -D -m 0644 man/rtmpd.ini.5 "$(DESTDIR)$(MANDIR)/man5/rtmpd.ini.5"
	@sed -i $(PLACES) "$(DESTDIR)$(MANDIR)/man8/rtmpd.8" "$(DESTDIR)$(MANDIR)/man5/rtmpd.ini.5"
	@if $(LIVE); then systemd-sysusers rtmpd.conf && systemd-tmpfiles --create rtmpd.conf && systemctl daemon-reload; fi
	@echo "rtmpd is installed. To run it: systemctl enable --now rtmpd.socket rtmpd.service"

# The configuration, recordings, logs and the user are kept: they belong to the operator.
uninstall:
	@if $(LIVE); then systemctl disable --now rtmpd.socket rtmpd-tls.socket rtmpd.service 2>/dev/null || true; fi
	@test ! -e "$(DESTDIR)$(APPDIR)" || test -f "$(DESTDIR)$(APPDIR)/pyvenv.cfg" || \
		{ echo "$(DESTDIR)$(APPDIR) is not an environment of rtmpd: set APPDIR" >&2; exit 1; }
	@rm -rf "$(DESTDIR)$(APPDIR)"
	@rm -f "$(DESTDIR)$(BINDIR)/rtmpd" "$(DESTDIR)$(UNITDIR)/rtmpd.service" "$(DESTDIR)$(UNITDIR)/rtmpd.socket" \
		"$(DESTDIR)$(UNITDIR)/rtmpd-tls.socket" \
		"$(DESTDIR)$(SYSUSERSDIR)/rtmpd.conf" "$(DESTDIR)$(TMPFILESDIR)/rtmpd.conf" \
		"$(DESTDIR)$(MANDIR)/man8/rtmpd.8" "$(DESTDIR)$(MANDIR)/man5/rtmpd.ini.5" "$(DESTDIR)$(INI).new"
	@if $(LIVE); then systemctl daemon-reload; fi
	@echo "rtmpd is uninstalled. Kept: $(INI), /var/lib/rtmpd, /var/log/rtmpd and the user rtmpd."
