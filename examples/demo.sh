#!/bin/sh
# The main job on real images: what breaks when a tuned batch of 128 grows, and what a plan mends. Called by `make demo`.
# Finished runs are kept in $OUT: interrupt it and call it again, and it goes on.
set -eu
BIN=${BIN:-.venv/bin}
OUT=${OUT:-runs/demo}
SEEDS=${SEEDS:-3}          # before the first verdict
MAX_SEEDS=${MAX_SEEDS:-14} # at most, until each arm is decided

if "$BIN/python" -c "from bigbatch.tasks import load_task; load_task('fashion_mnist/mlp').splits()" 2>"${TMPDIR:-/tmp}/bigbatch-demo.$$"; then
    TASK=fashion_mnist/mlp TO=8192
else
    echo "Fashion-MNIST is not at hand, so the demo runs digits/mlp instead:"
    tail -n 1 "${TMPDIR:-/tmp}/bigbatch-demo.$$"
    TASK=digits/mlp TO=1280
fi
rm -f "${TMPDIR:-/tmp}/bigbatch-demo.$$"

echo "1. A classical rule at a batch of $TO: LEGW"
"$BIN/bigbatch" scale $TASK --to $TO --rule legw --seeds "$SEEDS" --max-seeds "$MAX_SEEDS" --out "$OUT"
echo "2. The same batch, planned by measurement: auto"
"$BIN/bigbatch" scale $TASK --to $TO --rule auto --seeds "$SEEDS" --max-seeds "$MAX_SEEDS" --out "$OUT"

if "$BIN/python" -W error -c "from bigbatch.tasks import load_task; load_task('text/gpt').splits()" 2>/dev/null; then
    echo "3. A language model on the Bible at four times its batch, a twentieth of its run (\`bigbatch scale text/gpt --to 64\` judges the whole)"
    "$BIN/bigbatch" train text/gpt --global-batch 64 --set budget.epochs=0.05 --set schedule.warmup.epochs=0.01 --quiet
fi
