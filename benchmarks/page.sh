#!/bin/sh
# Measure every row of the benchmark page on this machine, which should have nothing else to do, and write
# FOLDER/bench.html. About 35 minutes on two cores; the minutes of each part stand beside it.
#
#     benchmarks/page.sh [FOLDER]
#
# PYTHON: an interpreter with memkit (.venv/bin/python). PEER_PYTHON: one with titans-pytorch too (the same).
set -eu
case ${1:-} in
    "") folder=runs/bench ;;  # of the repository
    /*) folder=$1 ;;
    *) folder=$PWD/$1 ;;
esac
cd "$(dirname "$0")/.."
python=${PYTHON:-.venv/bin/python}
peer=${PEER_PYTHON:-$python}

bench() {
    "$python" -c 'import sys; from ablations.cli import main; sys.exit(main(sys.argv[1:]))' bench "$@" --out "$folder"
}

against_peer() {
    "$python" benchmarks/peer_titans_pytorch.py "$@" --peer-python "$peer" --out "$folder"
}

against_peer token --pairs 7                        # 1
against_peer coarse --pairs 5 --recompute 256       # 1
against_peer decode --pairs 9                       # 1
against_peer decode --pairs 9 --compile             # 2
bench core --threads 1                              # 2
bench rounds --threads 1                            # 6
bench decode                                        # 1
bench length                                        # 3
bench models                                        # 6
bench stream                                        # 10
