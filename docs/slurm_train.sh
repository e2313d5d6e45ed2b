#!/bin/bash
# One run on several nodes: sbatch docs/slurm_train.sh NAME --preset reference-imagenet --device cuda
# Submit it where all nodes see the data and runs/NAME, which it goes on from when it starts again.
#SBATCH --job-name=mtkernels
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@300
#SBATCH --requeue
#SBATCH --open-mode=append

# One task a node: torchrun, which starts a rank for each GPU. SIGTERM comes 300 s before the time is over: all ranks
# stop after the same step, the main one writes a checkpoint, and the job puts itself back into the queue.
name=${1:?the first argument must be the name of the run}
shift
started=$(mktemp)
first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
srun torchrun --nnodes="$SLURM_NNODES" --nproc-per-node="${SLURM_GPUS_ON_NODE:-1}" --max-restarts=3 \
  --rdzv-backend=c10d --rdzv-id="$SLURM_JOB_ID" --rdzv-endpoint="$first:29500" \
  -m mtkernels.train.cli train --name "$name" --resume auto "$@"
code=$?

# A checkpoint of this job's, and a run that has not ended: in summary.json, which a run that was killed has not.
if [ -n "$(find "runs/$name/checkpoints" -newer "$started" -name 'step-*' 2>/dev/null)" ] &&
  ! grep -qs '"interrupted": false' "runs/$name/summary.json"; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit $code
