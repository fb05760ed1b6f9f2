#!/bin/sh
# Proves that the committed artifacts are what the committed sources compile to.
set -eu
cd "$(dirname "$0")"
npm ci --no-audit --no-fund
node build.mjs --check
