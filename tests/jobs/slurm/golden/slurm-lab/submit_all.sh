#!/bin/bash
# Submits all jobs of study demo with their dependencies, each once. Arguments go to every sbatch, for example
# ./submit_all.sh --nice=100
set -euo pipefail
umask 077
cd "$(dirname "${BASH_SOURCE[0]}")"
slurm=/RUN/slurm
mkdir -p "$slurm"
if [ -s "$slurm/submissions.jsonl" ]; then
    echo "$slurm/submissions.jsonl: this run was submitted before; go on with \`curricula submit\` or \`curricula retry\`" >&2
    exit 2
fi

# Variables of this shell that Slurm's commands would take for options, which override those in the scripts, or jobs for a rank's.
# Inside an allocation SLURM_ variables describe that allocation.
ignored= inside=${SLURM_JOB_ID-}
for name in $(compgen -e); do
    if [[ $name =~ ^((SBATCH|SRUN|SLURM|SALLOC|SQUEUE|SACCT|SCANCEL|SCONTROL)_.*|TORCHELASTIC_.*|RANK|WORLD_SIZE|LOCAL_RANK|LOCAL_WORLD_SIZE|GROUP_RANK|NODE_RANK|MASTER_ADDR|MASTER_PORT)$ && ! $name =~ ^(SLURM_CONF|SLURM_CONF_SERVER|SLURM_JWT|SLURM_SACK_KEY|SLURM_SACK_JWKS)$ ]]; then
        unset "$name"
        [[ $inside && $name = SLURM_* ]] || ignored+=" $name"
    fi
done
[ -z "$ignored" ] || echo "Ignored variables of this shell:$ignored. The scripts decide." >&2

# The arrays of this run that Slurm has, recorded or not: a call killed just after sbatch could not record its job. They are
# recognised by their logs, which go to the run folder.
queued() {
    local told
    told=$(squeue --me --noheader --Format=ArrayJobID:24,STDOUT:4096 2>&1) || { echo "$told; repeat when Slurm answers" >&2; return 1; }
    slurm=$slurm awk '$1 ~ /^[0-9]+$/ && index(substr($0, 25), ENVIRON["slurm"] "/") == 1 { print $1 }' <<<"$told" | sort -un
}
found=$(queued | paste -sd' ' -)
if [ -n "$found" ]; then
    echo "array $found of this run is in the queue already; go on with \`curricula submit\`, or \`scancel $found\`" >&2
    exit 2
fi

job_00=$(sbatch --parsable --output="$slurm/"%A_%a_0_log.out "$@" 00-prepare.sbatch)
job_00=${job_00%%;*} # without the cluster name
printf '{"job": "prepare", "job_id": "%s", "labels": ["prepare"], "submitted": %s}\n' "$job_00" "$(date +%s)" >>"$slurm/submissions.jsonl"
echo "prepare: array $job_00 of 1"
job_01=$(sbatch --parsable --output="$slurm/"%A_%a_0_log.out --dependency="afterok:${job_00}" "$@" 01-tokenize.sbatch)
job_01=${job_01%%;*} # without the cluster name
printf '{"job": "tokenize", "job_id": "%s", "labels": ["web/validation", "web/00000", "stories/validation", "stories/00000", "math/validation", "math/00000", "safeweb/validation", "safeweb/00000", "refuseweb/validation", "refuseweb/00000", "moral-education/validation", "moral-education/00000", "unsafe-tagged/validation", "unsafe-tagged/00000"], "submitted": %s}\n' "$job_01" "$(date +%s)" >>"$slurm/submissions.jsonl"
echo "tokenize: array $job_01 of 14"
job_02=$(sbatch --parsable --output="$slurm/"%A_%a_0_log.out --dependency="afterok:${job_01}" "$@" 02-pretrain-trunk-100.sbatch)
job_02=${job_02%%;*} # without the cluster name
printf '{"job": "pretrain-trunk-100", "job_id": "%s", "labels": ["trunk"], "submitted": %s}\n' "$job_02" "$(date +%s)" >>"$slurm/submissions.jsonl"
echo "pretrain-trunk-100: array $job_02 of 1"
job_03=$(sbatch --parsable --output="$slurm/"%A_%a_0_log.out --dependency="afterok:${job_02}" "$@" 03-pretrain-trunk-300.sbatch)
job_03=${job_03%%;*} # without the cluster name
printf '{"job": "pretrain-trunk-300", "job_id": "%s", "labels": ["trunk"], "submitted": %s}\n' "$job_03" "$(date +%s)" >>"$slurm/submissions.jsonl"
echo "pretrain-trunk-300: array $job_03 of 1"
job_04=$(sbatch --parsable --output="$slurm/"%A_%a_0_log.out --dependency="afterok:${job_03}" "$@" 04-pretrain-trunk-500.sbatch)
job_04=${job_04%%;*} # without the cluster name
printf '{"job": "pretrain-trunk-500", "job_id": "%s", "labels": ["trunk"], "submitted": %s}\n' "$job_04" "$(date +%s)" >>"$slurm/submissions.jsonl"
echo "pretrain-trunk-500: array $job_04 of 1"
job_05=$(sbatch --parsable --output="$slurm/"%A_%a_0_log.out --dependency="afterok:${job_01}" "$@" 05-pretrain-0.sbatch)
job_05=${job_05%%;*} # without the cluster name
printf '{"job": "pretrain-0", "job_id": "%s", "labels": ["data-0", "full-0"], "submitted": %s}\n' "$job_05" "$(date +%s)" >>"$slurm/submissions.jsonl"
echo "pretrain-0: array $job_05 of 2"
job_06=$(sbatch --parsable --output="$slurm/"%A_%a_0_log.out --dependency="afterok:${job_02}" "$@" 06-pretrain-20.sbatch)
job_06=${job_06%%;*} # without the cluster name
printf '{"job": "pretrain-20", "job_id": "%s", "labels": ["data-20", "full-20"], "submitted": %s}\n' "$job_06" "$(date +%s)" >>"$slurm/submissions.jsonl"
echo "pretrain-20: array $job_06 of 2"
job_07=$(sbatch --parsable --output="$slurm/"%A_%a_0_log.out --dependency="afterok:${job_03}" "$@" 07-pretrain-60.sbatch)
job_07=${job_07%%;*} # without the cluster name
printf '{"job": "pretrain-60", "job_id": "%s", "labels": ["data-60", "full-60"], "submitted": %s}\n' "$job_07" "$(date +%s)" >>"$slurm/submissions.jsonl"
echo "pretrain-60: array $job_07 of 2"
job_08=$(sbatch --parsable --output="$slurm/"%A_%a_0_log.out --dependency="aftercorr:${job_05}" "$@" 08-export-base-0.sbatch)
job_08=${job_08%%;*} # without the cluster name
printf '{"job": "export-base-0", "job_id": "%s", "labels": ["data-0", "full-0"], "submitted": %s}\n' "$job_08" "$(date +%s)" >>"$slurm/submissions.jsonl"
echo "export-base-0: array $job_08 of 2"
job_09=$(sbatch --parsable --output="$slurm/"%A_%a_0_log.out --dependency="aftercorr:${job_05}" "$@" 09-instruct-0.sbatch)
job_09=${job_09%%;*} # without the cluster name
printf '{"job": "instruct-0", "job_id": "%s", "labels": ["data-0", "full-0"], "submitted": %s}\n' "$job_09" "$(date +%s)" >>"$slurm/submissions.jsonl"
echo "instruct-0: array $job_09 of 2"
job_10=$(sbatch --parsable --output="$slurm/"%A_%a_0_log.out --dependency="aftercorr:${job_09}" "$@" 10-benign-0.sbatch)
job_10=${job_10%%;*} # without the cluster name
printf '{"job": "benign-0", "job_id": "%s", "labels": ["data-0", "full-0"], "submitted": %s}\n' "$job_10" "$(date +%s)" >>"$slurm/submissions.jsonl"
echo "benign-0: array $job_10 of 2"
job_11=$(sbatch --parsable --output="$slurm/"%A_%a_0_log.out --dependency="aftercorr:${job_06}" "$@" 11-export-base-20.sbatch)
job_11=${job_11%%;*} # without the cluster name
printf '{"job": "export-base-20", "job_id": "%s", "labels": ["data-20", "full-20"], "submitted": %s}\n' "$job_11" "$(date +%s)" >>"$slurm/submissions.jsonl"
echo "export-base-20: array $job_11 of 2"
job_12=$(sbatch --parsable --output="$slurm/"%A_%a_0_log.out --dependency="aftercorr:${job_06}" "$@" 12-instruct-20.sbatch)
job_12=${job_12%%;*} # without the cluster name
printf '{"job": "instruct-20", "job_id": "%s", "labels": ["data-20", "full-20"], "submitted": %s}\n' "$job_12" "$(date +%s)" >>"$slurm/submissions.jsonl"
echo "instruct-20: array $job_12 of 2"
job_13=$(sbatch --parsable --output="$slurm/"%A_%a_0_log.out --dependency="aftercorr:${job_12}" "$@" 13-benign-20.sbatch)
job_13=${job_13%%;*} # without the cluster name
printf '{"job": "benign-20", "job_id": "%s", "labels": ["data-20", "full-20"], "submitted": %s}\n' "$job_13" "$(date +%s)" >>"$slurm/submissions.jsonl"
echo "benign-20: array $job_13 of 2"
job_14=$(sbatch --parsable --output="$slurm/"%A_%a_0_log.out --dependency="aftercorr:${job_07}" "$@" 14-export-base-60.sbatch)
job_14=${job_14%%;*} # without the cluster name
printf '{"job": "export-base-60", "job_id": "%s", "labels": ["data-60", "full-60"], "submitted": %s}\n' "$job_14" "$(date +%s)" >>"$slurm/submissions.jsonl"
echo "export-base-60: array $job_14 of 2"
job_15=$(sbatch --parsable --output="$slurm/"%A_%a_0_log.out --dependency="aftercorr:${job_07}" "$@" 15-instruct-60.sbatch)
job_15=${job_15%%;*} # without the cluster name
printf '{"job": "instruct-60", "job_id": "%s", "labels": ["data-60", "full-60"], "submitted": %s}\n' "$job_15" "$(date +%s)" >>"$slurm/submissions.jsonl"
echo "instruct-60: array $job_15 of 2"
job_16=$(sbatch --parsable --output="$slurm/"%A_%a_0_log.out --dependency="aftercorr:${job_15}" "$@" 16-benign-60.sbatch)
job_16=${job_16%%;*} # without the cluster name
printf '{"job": "benign-60", "job_id": "%s", "labels": ["data-60", "full-60"], "submitted": %s}\n' "$job_16" "$(date +%s)" >>"$slurm/submissions.jsonl"
echo "benign-60: array $job_16 of 2"
job_17=$(sbatch --parsable --output="$slurm/"%A_%a_0_log.out --dependency="aftercorr:${job_04}" "$@" 17-export-base-100.sbatch)
job_17=${job_17%%;*} # without the cluster name
printf '{"job": "export-base-100", "job_id": "%s", "labels": ["safe-100"], "submitted": %s}\n' "$job_17" "$(date +%s)" >>"$slurm/submissions.jsonl"
echo "export-base-100: array $job_17 of 1"
job_18=$(sbatch --parsable --output="$slurm/"%A_%a_0_log.out --dependency="aftercorr:${job_04}" "$@" 18-instruct-100.sbatch)
job_18=${job_18%%;*} # without the cluster name
printf '{"job": "instruct-100", "job_id": "%s", "labels": ["safe-100"], "submitted": %s}\n' "$job_18" "$(date +%s)" >>"$slurm/submissions.jsonl"
echo "instruct-100: array $job_18 of 1"
job_19=$(sbatch --parsable --output="$slurm/"%A_%a_0_log.out --dependency="aftercorr:${job_18}" "$@" 19-benign-100.sbatch)
job_19=${job_19%%;*} # without the cluster name
printf '{"job": "benign-100", "job_id": "%s", "labels": ["safe-100"], "submitted": %s}\n' "$job_19" "$(date +%s)" >>"$slurm/submissions.jsonl"
echo "benign-100: array $job_19 of 1"
job_20=$(sbatch --parsable --output="$slurm/"%A_%a_0_log.out --dependency="afterok:${job_08}" "$@" 20-evaluate-base-0.sbatch)
job_20=${job_20%%;*} # without the cluster name
printf '{"job": "evaluate-base-0", "job_id": "%s", "labels": ["data-0/attacks-topk/jb_completions", "data-0/attacks-safebeam/jb_completions", "data-0/probes", "full-0/attacks-topk/jb_completions", "full-0/attacks-safebeam/jb_completions", "full-0/probes"], "submitted": %s}\n' "$job_20" "$(date +%s)" >>"$slurm/submissions.jsonl"
echo "evaluate-base-0: array $job_20 of 6"
job_21=$(sbatch --parsable --output="$slurm/"%A_%a_0_log.out --dependency="afterok:${job_09}" "$@" 21-evaluate-instruct-0.sbatch)
job_21=${job_21%%;*} # without the cluster name
printf '{"job": "evaluate-instruct-0", "job_id": "%s", "labels": ["data-0/attacks-topk/harmbench", "data-0/attacks-topk/advbench", "data-0/attacks-topk/jailbreakbench", "data-0/attacks-topk/tdc", "data-0/attacks-safebeam/harmbench", "data-0/attacks-safebeam/advbench", "data-0/attacks-safebeam/jailbreakbench", "data-0/attacks-safebeam/tdc", "data-0/overrefusal-topk/alpaca", "data-0/overrefusal-safebeam/alpaca", "data-0/gcg/jailbreakbench", "data-0/probes", "full-0/attacks-topk/harmbench", "full-0/attacks-topk/advbench", "full-0/attacks-topk/jailbreakbench", "full-0/attacks-topk/tdc", "full-0/attacks-safebeam/harmbench", "full-0/attacks-safebeam/advbench", "full-0/attacks-safebeam/jailbreakbench", "full-0/attacks-safebeam/tdc", "full-0/overrefusal-topk/alpaca", "full-0/overrefusal-safebeam/alpaca", "full-0/gcg/jailbreakbench", "full-0/probes"], "submitted": %s}\n' "$job_21" "$(date +%s)" >>"$slurm/submissions.jsonl"
echo "evaluate-instruct-0: array $job_21 of 24"
job_22=$(sbatch --parsable --output="$slurm/"%A_%a_0_log.out --dependency="afterok:${job_10}" "$@" 22-evaluate-benign-0.sbatch)
job_22=${job_22%%;*} # without the cluster name
printf '{"job": "evaluate-benign-0", "job_id": "%s", "labels": ["data-0/attacks-topk/harmbench", "data-0/attacks-topk/advbench", "data-0/attacks-topk/jailbreakbench", "data-0/attacks-topk/tdc", "data-0/attacks-safebeam/harmbench", "data-0/attacks-safebeam/advbench", "data-0/attacks-safebeam/jailbreakbench", "data-0/attacks-safebeam/tdc", "data-0/overrefusal-topk/alpaca", "data-0/overrefusal-safebeam/alpaca", "full-0/attacks-topk/harmbench", "full-0/attacks-topk/advbench", "full-0/attacks-topk/jailbreakbench", "full-0/attacks-topk/tdc", "full-0/attacks-safebeam/harmbench", "full-0/attacks-safebeam/advbench", "full-0/attacks-safebeam/jailbreakbench", "full-0/attacks-safebeam/tdc", "full-0/overrefusal-topk/alpaca", "full-0/overrefusal-safebeam/alpaca"], "submitted": %s}\n' "$job_22" "$(date +%s)" >>"$slurm/submissions.jsonl"
echo "evaluate-benign-0: array $job_22 of 20"
job_23=$(sbatch --parsable --output="$slurm/"%A_%a_0_log.out --dependency="afterany:${job_20},afterany:${job_21},afterany:${job_22}" "$@" 23-merge-0.sbatch)
job_23=${job_23%%;*} # without the cluster name
printf '{"job": "merge-0", "job_id": "%s", "labels": ["data-0/base", "full-0/base", "data-0/instruct", "full-0/instruct", "data-0/benign", "full-0/benign"], "submitted": %s}\n' "$job_23" "$(date +%s)" >>"$slurm/submissions.jsonl"
echo "merge-0: array $job_23 of 6"
job_24=$(sbatch --parsable --output="$slurm/"%A_%a_0_log.out --dependency="afterok:${job_11}" "$@" 24-evaluate-base-20.sbatch)
job_24=${job_24%%;*} # without the cluster name
printf '{"job": "evaluate-base-20", "job_id": "%s", "labels": ["data-20/attacks-topk/jb_completions", "data-20/attacks-safebeam/jb_completions", "data-20/probes", "full-20/attacks-topk/jb_completions", "full-20/attacks-safebeam/jb_completions", "full-20/probes"], "submitted": %s}\n' "$job_24" "$(date +%s)" >>"$slurm/submissions.jsonl"
echo "evaluate-base-20: array $job_24 of 6"
job_25=$(sbatch --parsable --output="$slurm/"%A_%a_0_log.out --dependency="afterok:${job_12}" "$@" 25-evaluate-instruct-20.sbatch)
job_25=${job_25%%;*} # without the cluster name
printf '{"job": "evaluate-instruct-20", "job_id": "%s", "labels": ["data-20/attacks-topk/harmbench", "data-20/attacks-topk/advbench", "data-20/attacks-topk/jailbreakbench", "data-20/attacks-topk/tdc", "data-20/attacks-safebeam/harmbench", "data-20/attacks-safebeam/advbench", "data-20/attacks-safebeam/jailbreakbench", "data-20/attacks-safebeam/tdc", "data-20/overrefusal-topk/alpaca", "data-20/overrefusal-safebeam/alpaca", "data-20/gcg/jailbreakbench", "data-20/probes", "full-20/attacks-topk/harmbench", "full-20/attacks-topk/advbench", "full-20/attacks-topk/jailbreakbench", "full-20/attacks-topk/tdc", "full-20/attacks-safebeam/harmbench", "full-20/attacks-safebeam/advbench", "full-20/attacks-safebeam/jailbreakbench", "full-20/attacks-safebeam/tdc", "full-20/overrefusal-topk/alpaca", "full-20/overrefusal-safebeam/alpaca", "full-20/gcg/jailbreakbench", "full-20/probes"], "submitted": %s}\n' "$job_25" "$(date +%s)" >>"$slurm/submissions.jsonl"
echo "evaluate-instruct-20: array $job_25 of 24"
job_26=$(sbatch --parsable --output="$slurm/"%A_%a_0_log.out --dependency="afterok:${job_13}" "$@" 26-evaluate-benign-20.sbatch)
job_26=${job_26%%;*} # without the cluster name
printf '{"job": "evaluate-benign-20", "job_id": "%s", "labels": ["data-20/attacks-topk/harmbench", "data-20/attacks-topk/advbench", "data-20/attacks-topk/jailbreakbench", "data-20/attacks-topk/tdc", "data-20/attacks-safebeam/harmbench", "data-20/attacks-safebeam/advbench", "data-20/attacks-safebeam/jailbreakbench", "data-20/attacks-safebeam/tdc", "data-20/overrefusal-topk/alpaca", "data-20/overrefusal-safebeam/alpaca", "full-20/attacks-topk/harmbench", "full-20/attacks-topk/advbench", "full-20/attacks-topk/jailbreakbench", "full-20/attacks-topk/tdc", "full-20/attacks-safebeam/harmbench", "full-20/attacks-safebeam/advbench", "full-20/attacks-safebeam/jailbreakbench", "full-20/attacks-safebeam/tdc", "full-20/overrefusal-topk/alpaca", "full-20/overrefusal-safebeam/alpaca"], "submitted": %s}\n' "$job_26" "$(date +%s)" >>"$slurm/submissions.jsonl"
echo "evaluate-benign-20: array $job_26 of 20"
job_27=$(sbatch --parsable --output="$slurm/"%A_%a_0_log.out --dependency="afterany:${job_24},afterany:${job_25},afterany:${job_26}" "$@" 27-merge-20.sbatch)
job_27=${job_27%%;*} # without the cluster name
printf '{"job": "merge-20", "job_id": "%s", "labels": ["data-20/base", "full-20/base", "data-20/instruct", "full-20/instruct", "data-20/benign", "full-20/benign"], "submitted": %s}\n' "$job_27" "$(date +%s)" >>"$slurm/submissions.jsonl"
echo "merge-20: array $job_27 of 6"
job_28=$(sbatch --parsable --output="$slurm/"%A_%a_0_log.out --dependency="afterok:${job_14}" "$@" 28-evaluate-base-60.sbatch)
job_28=${job_28%%;*} # without the cluster name
printf '{"job": "evaluate-base-60", "job_id": "%s", "labels": ["data-60/attacks-topk/jb_completions", "data-60/attacks-safebeam/jb_completions", "data-60/probes", "full-60/attacks-topk/jb_completions", "full-60/attacks-safebeam/jb_completions", "full-60/probes"], "submitted": %s}\n' "$job_28" "$(date +%s)" >>"$slurm/submissions.jsonl"
echo "evaluate-base-60: array $job_28 of 6"
job_29=$(sbatch --parsable --output="$slurm/"%A_%a_0_log.out --dependency="afterok:${job_15}" "$@" 29-evaluate-instruct-60.sbatch)
job_29=${job_29%%;*} # without the cluster name
printf '{"job": "evaluate-instruct-60", "job_id": "%s", "labels": ["data-60/attacks-topk/harmbench", "data-60/attacks-topk/advbench", "data-60/attacks-topk/jailbreakbench", "data-60/attacks-topk/tdc", "data-60/attacks-safebeam/harmbench", "data-60/attacks-safebeam/advbench", "data-60/attacks-safebeam/jailbreakbench", "data-60/attacks-safebeam/tdc", "data-60/overrefusal-topk/alpaca", "data-60/overrefusal-safebeam/alpaca", "data-60/gcg/jailbreakbench", "data-60/probes", "full-60/attacks-topk/harmbench", "full-60/attacks-topk/advbench", "full-60/attacks-topk/jailbreakbench", "full-60/attacks-topk/tdc", "full-60/attacks-safebeam/harmbench", "full-60/attacks-safebeam/advbench", "full-60/attacks-safebeam/jailbreakbench", "full-60/attacks-safebeam/tdc", "full-60/overrefusal-topk/alpaca", "full-60/overrefusal-safebeam/alpaca", "full-60/gcg/jailbreakbench", "full-60/probes"], "submitted": %s}\n' "$job_29" "$(date +%s)" >>"$slurm/submissions.jsonl"
echo "evaluate-instruct-60: array $job_29 of 24"
job_30=$(sbatch --parsable --output="$slurm/"%A_%a_0_log.out --dependency="afterok:${job_16}" "$@" 30-evaluate-benign-60.sbatch)
job_30=${job_30%%;*} # without the cluster name
printf '{"job": "evaluate-benign-60", "job_id": "%s", "labels": ["data-60/attacks-topk/harmbench", "data-60/attacks-topk/advbench", "data-60/attacks-topk/jailbreakbench", "data-60/attacks-topk/tdc", "data-60/attacks-safebeam/harmbench", "data-60/attacks-safebeam/advbench", "data-60/attacks-safebeam/jailbreakbench", "data-60/attacks-safebeam/tdc", "data-60/overrefusal-topk/alpaca", "data-60/overrefusal-safebeam/alpaca", "full-60/attacks-topk/harmbench", "full-60/attacks-topk/advbench", "full-60/attacks-topk/jailbreakbench", "full-60/attacks-topk/tdc", "full-60/attacks-safebeam/harmbench", "full-60/attacks-safebeam/advbench", "full-60/attacks-safebeam/jailbreakbench", "full-60/attacks-safebeam/tdc", "full-60/overrefusal-topk/alpaca", "full-60/overrefusal-safebeam/alpaca"], "submitted": %s}\n' "$job_30" "$(date +%s)" >>"$slurm/submissions.jsonl"
echo "evaluate-benign-60: array $job_30 of 20"
job_31=$(sbatch --parsable --output="$slurm/"%A_%a_0_log.out --dependency="afterany:${job_28},afterany:${job_29},afterany:${job_30}" "$@" 31-merge-60.sbatch)
job_31=${job_31%%;*} # without the cluster name
printf '{"job": "merge-60", "job_id": "%s", "labels": ["data-60/base", "full-60/base", "data-60/instruct", "full-60/instruct", "data-60/benign", "full-60/benign"], "submitted": %s}\n' "$job_31" "$(date +%s)" >>"$slurm/submissions.jsonl"
echo "merge-60: array $job_31 of 6"
job_32=$(sbatch --parsable --output="$slurm/"%A_%a_0_log.out --dependency="afterok:${job_17}" "$@" 32-evaluate-base-100.sbatch)
job_32=${job_32%%;*} # without the cluster name
printf '{"job": "evaluate-base-100", "job_id": "%s", "labels": ["safe-100/attacks-topk/jb_completions", "safe-100/attacks-safebeam/jb_completions", "safe-100/probes"], "submitted": %s}\n' "$job_32" "$(date +%s)" >>"$slurm/submissions.jsonl"
echo "evaluate-base-100: array $job_32 of 3"
job_33=$(sbatch --parsable --output="$slurm/"%A_%a_0_log.out --dependency="afterok:${job_18}" "$@" 33-evaluate-instruct-100.sbatch)
job_33=${job_33%%;*} # without the cluster name
printf '{"job": "evaluate-instruct-100", "job_id": "%s", "labels": ["safe-100/attacks-topk/harmbench", "safe-100/attacks-topk/advbench", "safe-100/attacks-topk/jailbreakbench", "safe-100/attacks-topk/tdc", "safe-100/attacks-safebeam/harmbench", "safe-100/attacks-safebeam/advbench", "safe-100/attacks-safebeam/jailbreakbench", "safe-100/attacks-safebeam/tdc", "safe-100/overrefusal-topk/alpaca", "safe-100/overrefusal-safebeam/alpaca", "safe-100/gcg/jailbreakbench", "safe-100/probes"], "submitted": %s}\n' "$job_33" "$(date +%s)" >>"$slurm/submissions.jsonl"
echo "evaluate-instruct-100: array $job_33 of 12"
job_34=$(sbatch --parsable --output="$slurm/"%A_%a_0_log.out --dependency="afterok:${job_19}" "$@" 34-evaluate-benign-100.sbatch)
job_34=${job_34%%;*} # without the cluster name
printf '{"job": "evaluate-benign-100", "job_id": "%s", "labels": ["safe-100/attacks-topk/harmbench", "safe-100/attacks-topk/advbench", "safe-100/attacks-topk/jailbreakbench", "safe-100/attacks-topk/tdc", "safe-100/attacks-safebeam/harmbench", "safe-100/attacks-safebeam/advbench", "safe-100/attacks-safebeam/jailbreakbench", "safe-100/attacks-safebeam/tdc", "safe-100/overrefusal-topk/alpaca", "safe-100/overrefusal-safebeam/alpaca"], "submitted": %s}\n' "$job_34" "$(date +%s)" >>"$slurm/submissions.jsonl"
echo "evaluate-benign-100: array $job_34 of 10"
job_35=$(sbatch --parsable --output="$slurm/"%A_%a_0_log.out --dependency="afterany:${job_32},afterany:${job_33},afterany:${job_34}" "$@" 35-merge-100.sbatch)
job_35=${job_35%%;*} # without the cluster name
printf '{"job": "merge-100", "job_id": "%s", "labels": ["safe-100/base", "safe-100/instruct", "safe-100/benign"], "submitted": %s}\n' "$job_35" "$(date +%s)" >>"$slurm/submissions.jsonl"
echo "merge-100: array $job_35 of 3"
job_36=$(sbatch --parsable --output="$slurm/"%A_%a_0_log.out --dependency="afterany:${job_23},afterany:${job_27},afterany:${job_31},afterany:${job_35}" "$@" 36-report.sbatch)
job_36=${job_36%%;*} # without the cluster name
printf '{"job": "report", "job_id": "%s", "labels": ["report"], "submitted": %s}\n' "$job_36" "$(date +%s)" >>"$slurm/submissions.jsonl"
echo "report: array $job_36 of 1"
