#!/bin/sh
# Debian's Chromium for tests/web/test_browser.py, where it is missing, apt works and we are root.
# Else it says what is missing and leaves it to the tests to skip. Never fails.
for name in chromium chromium-browser google-chrome; do
    command -v "$name" >/dev/null 2>&1 && exit 0
done
if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null 2>&1; then
    echo "tests/web: no Chromium here, and it cannot be installed (apt-get as root): the browser tests will be skipped" >&2
    exit 0
fi
echo "tests/web: installing Debian's chromium for the browser tests" >&2
export DEBIAN_FRONTEND=noninteractive
install() { apt-get install -qq -y --no-install-recommends chromium >/dev/null 2>&1; }
install || { apt-get update -qq >/dev/null 2>&1; install; } ||
    echo "tests/web: apt-get could not install chromium: the browser tests will be skipped" >&2
exit 0
