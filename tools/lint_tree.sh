#!/bin/sh
# Lays the installed shape of the package out under build/tree, by links: tvm_tinytrain with passes, schedules and
# targets inside it. mypy and import-linter read files and know nothing of the mapping in setup.py.
set -eu
cd "$(dirname "$0")/.."
tree=build/tree
rm -rf "$tree"
mkdir -p "$tree/tvm_tinytrain"
cp -rs "$PWD/tvm_tinytrain/." "$tree/tvm_tinytrain/"
for part in passes schedules targets; do
  ln -s "$PWD/$part" "$tree/tvm_tinytrain/$part"
done
for part in benchmarks examples; do
  [ ! -d "$part" ] || ln -s "$PWD/$part" "$tree/$part"
done
