#!/usr/bin/env bash
# sbatch configs/cluster/slurm.sh configs/imagenet/offline/kd_resnet34_resnet18.yaml RUN [--KEY VALUE ...]
#SBATCH --job-name=kd_lightning
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=4
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --signal=SIGUSR1@180
#SBATCH --requeue
#SBATCH --open-mode=append

# Three minutes before the time is up, SIGUSR1 reaches every task: the run saves at a step boundary, puts the job back
# into the queue, and leaves with code 75. The requeued job finds the run's config.yaml and resumes.
set -euo pipefail
config=${1:?the configuration}
run=${2:?the name of the run}
shift 2
experiment=$(basename "$config" .yaml)
folder=runs/$experiment/$run

if test -f "$folder/config.yaml"; then
  command=(resume "$folder")
else
  command=(fit --config "$config" --experiment "$experiment" --run "$run"
    --trainer.num_nodes "$SLURM_JOB_NUM_NODES" --trainer.devices "$SLURM_NTASKS_PER_NODE" --trainer.strategy ddp "$@")
fi
exec srun --kill-on-bad-exit=0 kd-lightning "${command[@]}"
