#!/usr/bin/env bash
# One training on several nodes, which Slurm stops at its time limit and starts again where it was.
#
#     DATA=/data/imagenet RUN=runs/r50 sbatch --nodes 2 launch/slurm.sh --recipe resnet50_imagenet
#
# What follows the script's name goes to `python -m train`. RUN must be on storage that all nodes see.
#SBATCH --job-name=feedline
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=96
#SBATCH --exclusive
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
# Two minutes before the time limit, and before a preemption: USR1 to this script alone ("B:"), which passes it on.
#SBATCH --signal=B:USR1@120
set -euo pipefail

: "${DATA:?set DATA to a dataset made by python -m shard build}"
: "${RUN:?set RUN to the run folder, on storage that all nodes see}"
GPUS=${GPUS:-${SLURM_GPUS_ON_NODE:-8}}
PYTHON=${PYTHON:-python}

nodes=$(scontrol show hostnames "$SLURM_JOB_NODELIST")
head_node=${nodes%%$'\n'*}
port=$((20000 + SLURM_JOB_ID % 20000))

requeue=no
step=
# torchrun takes USR1 for a reason to end (--signals-to-handle) and hands it to its ranks, which save and leave.
# shellcheck disable=SC2329  # called by the traps
pass_on() {
    if [ -n "$step" ]; then kill -USR1 "$step" || true; fi
}
trap 'requeue=yes; pass_on' USR1
# scancel and preemption: Slurm itself knows whether to queue the job again.
trap pass_on TERM

# A node that dies takes its agent along: the others meet again, without it (MIN_NODES), or the job is requeued.
# srun itself does not take the job's --cpus-per-task over (Slurm 22.05 and later): without it, one core for 8 ranks.
srun --kill-on-bad-exit=0 ${SLURM_CPUS_PER_TASK:+--cpus-per-task="$SLURM_CPUS_PER_TASK"} "$PYTHON" -m torch.distributed.run \
    --nnodes "${MIN_NODES:-$SLURM_JOB_NUM_NODES}:$SLURM_JOB_NUM_NODES" \
    --nproc-per-node "$GPUS" \
    --rdzv-backend c10d --rdzv-endpoint "$head_node:$port" --rdzv-id "$SLURM_JOB_ID-${SLURM_RESTART_COUNT:-0}" \
    --max-restarts "${MAX_RESTARTS:-10}" \
    --signals-to-handle SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1 \
    -m train --data "$DATA" --run-dir "$RUN" "$@" &
step=$!

# `wait` returns when a trapped signal has come; the step may then still be writing its checkpoint.
status=0
wait "$step" || status=$?
while kill -0 "$step" 2>/dev/null; do
    status=0
    wait "$step" || status=$?
done

# Not by RUN/summary.json: an earlier, shorter training may have left one.
if [ "$status" -eq 0 ]; then
    echo "finished"
    exit 0
fi
# Told to stop, or the ranks asked for it (75): again, from the last checkpoint. Other failures stay as they are.
if [ "$requeue" = yes ] || [ "$status" -eq 75 ]; then
    echo "queueing job $SLURM_JOB_ID again"
    scontrol requeue "$SLURM_JOB_ID"
    exit 0
fi
exit "$status"
