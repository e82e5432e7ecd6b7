#!/usr/bin/env bash
# The one script: sets up the tools, builds dist/, serves it, tests it. `./build.sh help` lists the commands.
# Written for bash 3.2, the one of macOS.
set -euo pipefail
cd "$(dirname "$0")"

usage() {
  cat <<'TEXT'
Usage: ./build.sh COMMAND

  demo [--port N] [--check]   set up, build and serve the demo, and print its address;
                              --check: run it once in headless Chromium instead, and report
  test [--only PART]          set up, build and run every check and test; PART: lint, python, node, browser
  bench [NAME]                measure in Chromium and print the figures; NAME: large, levels, settings, store, tokenizers
  build                       set up and build dist/
  serve [--port N]            serve dist/ as it is; also --no-isolation, --csp
  lock                        renew requirements.txt from requirements.in
  clean [--all]               delete what was built; --all: also .venv, node_modules and .cache
  help                        this text

Environment: PYTHON (interpreter to use), CHROMIUM_PATH (browser to use), PYWEBML_CACHE (folder for downloads).
TEXT
}

TORCH=2.13.0
TORCH_CPU_INDEX=https://download.pytorch.org/whl/cpu
LOGS=build/logs
VENV_PYTHON=.venv/bin/python

fail() {
  echo "build.sh: $1" >&2
  if [ -n "${2:-}" ]; then echo "What to do: $2" >&2; fi
  exit 1
}

# step TITLE LOG HINT COMMAND...: runs a long command with its output in a log, and shows that it is alive.
step() {
  local title=$1 log="$LOGS/$2.log" hint=$3 started=$SECONDS shown=0 status=0 pid
  shift 3
  mkdir -p "$LOGS"
  echo "$title"
  "$@" >"$log" 2>&1 </dev/null &
  pid=$!
  while kill -0 "$pid" 2>/dev/null; do
    sleep 0.5
    if [ $((SECONDS - started - shown)) -ge 15 ]; then
      shown=$((SECONDS - started))
      echo "      … $shown s: $(tail -n 1 "$log" | cut -c 1-90)"
    fi
  done
  wait "$pid" || status=$?
  if [ "$status" -ne 0 ]; then
    echo "The end of $log:" >&2
    tail -n 30 "$log" >&2
    fail "$title failed with status $status." "$hint"
  fi
  echo "      done in $((SECONDS - started)) s"
}

find_python() {
  local name
  # Asked by running it: a name on the PATH may be a shim for a version that is not installed.
  for name in ${PYTHON:-} python3 python3.13 python3.12 python3.11 python3.14; do
    if "$name" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then
      echo "$name"
      return
    fi
  done
  fail "No Python 3.11 or newer with venv was found." \
    "Install one (Debian, Ubuntu: apt-get install python3 python3-venv; macOS: brew install python@3.13)."
}

check_node() {
  local version
  version=$(node --version 2>/dev/null || true)
  version=${version#v}
  if [ -z "$version" ] || [ "${version%%.*}" -lt 20 ] || ! command -v npm >/dev/null; then
    fail "Node 20 or newer with npm is needed; found: ${version:-none}." \
      "Install it from https://nodejs.org or your package manager."
  fi
}

install_torch() {
  # PyPI's Linux wheel is the CUDA build of several gigabytes; the CPU one is a tenth of that.
  if [ "$(uname -s)" = Linux ] && "$VENV_PYTHON" web/build/reachable.py "$TORCH_CPU_INDEX/" 5; then
    "$VENV_PYTHON" -m pip install --index-url "$TORCH_CPU_INDEX" "torch==$TORCH"
  else
    "$VENV_PYTHON" -m pip install "torch==$TORCH"
  fi
}

setup_python() {
  local python fingerprint
  if [ -x "$VENV_PYTHON" ] && ! "$VENV_PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
    echo "The virtual environment does not start any more; making a new one."
    rm -rf .venv
  fi
  if [ ! -x "$VENV_PYTHON" ]; then
    python=$(find_python)
    step "Making the virtual environment with $("$python" --version)" venv \
      "On Debian and Ubuntu the package python3-venv must be installed." "$python" -m venv .venv
  fi
  fingerprint="$("$VENV_PYTHON" --version) $(cksum <requirements.txt)"
  if [ "$(cat .venv/.fingerprint 2>/dev/null || true)" = "$fingerprint" ]; then return; fi
  # torch first: everything after it then finds it installed and brings no other build along.
  step "Installing torch $TORCH for the CPU (about 200 MB)" torch \
    "Check the network and the free disk space, then run again." install_torch
  step "Installing the Python packages" pip "Check the network, then run again." \
    "$VENV_PYTHON" -m pip install -r requirements.txt
  echo "$fingerprint" >.venv/.fingerprint
}

setup_node() {
  local fingerprint
  check_node
  fingerprint="$(node --version) $(cksum <package-lock.json)"
  if [ "$(cat node_modules/.fingerprint 2>/dev/null || true)" = "$fingerprint" ]; then return; fi
  step "Installing the npm packages" npm "Check the network and npm's registry setting, then run again." \
    npm ci --ignore-scripts --no-audit --no-fund
  echo "$fingerprint" >node_modules/.fingerprint
}

setup_chromium() {
  CHROMIUM_PATH=$(web/build/chromium.sh) || fail "There is no Chromium for the browser tests." "See above."
  export CHROMIUM_PATH
}

build() {
  setup_python
  setup_node
  "$VENV_PYTHON" -m web.build
}

demo() {
  local check="" port=""
  while [ $# -gt 0 ]; do
    case "$1" in
      --check) check=yes ;;
      --port)
        [ $# -ge 2 ] || misuse "--port needs a number."
        port=$2
        shift
        ;;
      --port=*) port=${1#--port=} ;;
      *) misuse "demo does not know $1." ;;
    esac
    shift
  done
  case "$port" in
    *[!0-9]*) misuse "--port needs a number, not $port." ;;
  esac
  build
  if [ -n "$check" ]; then
    setup_chromium
    exec node web/build/check.mjs "$VENV_PYTHON" "${port:-0}"
  fi
  exec "$VENV_PYTHON" web/build/serve.py dist ${port:+--port "$port"}
}

run_tests() {
  local only="" option
  option=${1:-}
  case "$option" in
    --only) only=${2:-} ;;
    --only=*) only=${option#--only=} ;;
    "") ;;
    *) misuse "test does not know $option." ;;
  esac
  case "$option:$only" in
    :) ;;
    *:lint | *:python | *:node | *:browser) ;;
    *) misuse "--only needs one of lint, python, node, browser." ;;
  esac
  setup_python
  setup_node
  case "$only" in
    "" | browser) setup_chromium ;;
  esac
  exec "$VENV_PYTHON" -m web.build.run_tests ${only:+--only "$only"}
}

bench() {
  build
  setup_chromium
  exec node_modules/.bin/playwright test --config tests/bench/playwright.config.ts "$@"
}

lock() {
  local folder
  folder=$(mktemp -d)
  # shellcheck disable=SC2064  # the folder's name is known now
  trap "rm -rf '$folder'" EXIT
  step "Making a clean environment" lock-venv "" "$(find_python)" -m venv "$folder"
  VENV_PYTHON="$folder/bin/python"
  step "Installing torch $TORCH" lock-torch "Check the network." install_torch
  step "Installing the direct requirements" lock-pip "Check the network." \
    "$VENV_PYTHON" -m pip install -r requirements.in
  {
    echo "# Exact versions of everything that requirements.in needs. Written by: ./build.sh lock"
    # Local version tags such as +cpu belong to one machine.
    "$VENV_PYTHON" -m pip freeze --all | sed -e '/^pip==/d' -e 's/+[a-z0-9.]*$//'
  } >requirements.txt
  echo "requirements.txt is renewed."
}

clean() {
  case "${1:-}" in
    "") rm -rf dist build ;;
    --all) rm -rf dist build .venv node_modules .cache ;;
    *) misuse "clean does not know $1." ;;
  esac
  rm -rf pywebml/_web test-results playwright-report .mypy_cache .ruff_cache .pytest_cache .hypothesis
  find pywebml web tests -name __pycache__ -type d -prune -exec rm -rf {} +
  echo "Clean."
}

misuse() {
  echo "build.sh: $1" >&2
  usage >&2
  exit 2
}

command=${1:-help}
[ $# -eq 0 ] || shift
case "$command" in
  demo) demo "$@" ;;
  test) run_tests "$@" ;;
  build)
    [ $# -eq 0 ] || misuse "build does not know $1."
    build
    ;;
  serve)
    python=$VENV_PYTHON
    [ -x "$python" ] || python=$(find_python)
    exec "$python" web/build/serve.py "$@"
    ;;
  bench) bench "$@" ;;
  lock) lock ;;
  clean) clean "$@" ;;
  help | -h | --help) usage ;;
  *) misuse "Unknown command: $command." ;;
esac
