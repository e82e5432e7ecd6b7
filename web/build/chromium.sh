#!/usr/bin/env bash
# Prints the path of a Chromium that starts. Looks for an installed one, and installs one if there is none.
# Messages go to standard error.
set -euo pipefail
cd "$(dirname "$0")/../.."

starts() { [ -n "$1" ] && [ -x "$1" ] && "$1" --version >/dev/null 2>&1; }

find_chromium() {
  local name path
  if [ -n "${CHROMIUM_PATH:-}" ]; then
    if starts "$CHROMIUM_PATH"; then echo "$CHROMIUM_PATH"; return 0; fi
    echo "CHROMIUM_PATH=$CHROMIUM_PATH does not start; looking for another one." >&2
  fi
  for name in chromium chromium-browser google-chrome google-chrome-stable; do
    path=$(command -v "$name" || true)
    # Ubuntu's chromium-browser may be a note that says where the real one is: it does not start.
    if starts "$path"; then echo "$path"; return 0; fi
  done
  local cache="${PLAYWRIGHT_BROWSERS_PATH:-}"
  if [ -z "$cache" ]; then
    case "$(uname -s)" in
      Darwin) cache="$HOME/Library/Caches/ms-playwright" ;;
      *) cache="$HOME/.cache/ms-playwright" ;;
    esac
  fi
  for path in \
    "/Applications/Chromium.app/Contents/MacOS/Chromium" \
    "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome" \
    "$HOME/Applications/Chromium.app/Contents/MacOS/Chromium" \
    "$HOME/Applications/Google Chrome.app/Contents/MacOS/Google Chrome" \
    "$cache"/chromium-*/chrome-linux*/chrome \
    "$cache"/chromium-*/chrome-mac*/*.app/Contents/MacOS/*; do
    if starts "$path"; then echo "$path"; return 0; fi
  done
  return 1
}

if find_chromium; then exit 0; fi

log=build/logs/chromium.log
mkdir -p build/logs
echo "No Chromium found; installing one (log: $log)." >&2
system=$(sed -n 's/^ID=//p' /etc/os-release 2>/dev/null | tr -d '"' || true)
if [ "$(id -u)" = 0 ] && [ "$system" = debian ]; then
  if ! { apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends \
    chromium fonts-noto-color-emoji; } >"$log" 2>&1; then
    tail -n 20 "$log" >&2
    echo "apt-get could not install chromium, see above; trying Playwright's own." >&2
  fi
fi
if ! find_chromium >/dev/null; then
  # Its system libraries can be installed along by root only.
  extra=""
  if [ "$(id -u)" = 0 ] && [ "$(uname -s)" = Linux ]; then extra=--with-deps; fi
  if ! npx playwright install $extra chromium >"$log" 2>&1; then
    tail -n 20 "$log" >&2
    echo "No Chromium could be installed. Install Chromium or Chrome and run again, or set CHROMIUM_PATH." >&2
    exit 1
  fi
fi
if ! find_chromium; then
  echo "A Chromium was installed but does not start. On Linux, 'npx playwright install-deps chromium' as root" >&2
  echo "installs the libraries that it needs. Or set CHROMIUM_PATH to one that starts." >&2
  exit 1
fi
