#!/bin/sh
# Measure every row of the benchmark page on this machine, which should have nothing else to do, and write
# FOLDER/bench.html. About 35 minutes on two cores; the minutes of each part stand beside it.
#
#     benchmarks/page.sh [FOLDER]
#
# PYTHON: an interpreter with memkit (.venv/bin/python). PEER_PYTHON: one with titans-pytorch too (the same).
# One thread each: several wait for each other, and longest where something else runs.
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

against_peer token --pairs 7 --threads 1                        # 1
against_peer token --pairs 7 --threads 1 --compile              # 1
against_peer coarse --pairs 5 --threads 1                       # 1
against_peer coarse --pairs 5 --threads 1 --compile             # 1
against_peer coarse --pairs 5 --threads 1 --compile --recompute 256  # 1
against_peer decode --pairs 9 --threads 1                       # 1
against_peer decode --pairs 9 --threads 1 --compile             # 2
bench core --threads 1                                          # 1
bench compile                                                   # 5
bench rounds --threads 1                                        # 2
bench rules --threads 1                                         # 5
bench decode --threads 1                                        # 1
bench length --threads 1                                        # 5
bench models --threads 1                                        # 12
bench stream --threads 2                                        # 10, two models at a time
