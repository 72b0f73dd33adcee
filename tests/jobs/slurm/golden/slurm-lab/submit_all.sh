#!/bin/bash
# Submits all jobs of study demo with their dependencies, each once. Arguments are passed to every sbatch, for example
# ./submit_all.sh --nice=100
set -euo pipefail
umask 077
root=/RUN
slurm=$root/slurm record=$root/slurm/submissions.jsonl
cd "$(dirname "${BASH_SOURCE[0]}")"
scripts=$PWD
mkdir -p "$slurm"
if [ -s "$record" ]; then
    echo "$record: this run was submitted before; go on with \`curricula submit\`, \`curricula retry\` or $root/resubmit.sh" >&2
    exit 2
fi

# Unset variables of this shell that Slurm's commands would read as options, which override those in the scripts, or that a job would
# take for variables of its ranks. Inside an allocation, SLURM_ variables are not reported: they describe the allocation.
ignored= inside=${SLURM_JOB_ID-}
for name in $(compgen -e); do
    if [[ $name =~ ^((SBATCH|SRUN|SLURM|SALLOC|SQUEUE|SACCT|SCANCEL|SCONTROL)_.*|TORCHELASTIC_.*|RANK|WORLD_SIZE|LOCAL_RANK|LOCAL_WORLD_SIZE|GROUP_RANK|NODE_RANK|MASTER_ADDR|MASTER_PORT)$ && ! $name =~ ^(SLURM_CONF|SLURM_CONF_SERVER|SLURM_JWT|SLURM_SACK_KEY|SLURM_SACK_JWKS)$ ]]; then
        unset "$name"
        [[ $inside && $name = SLURM_* ]] || ignored+=" $name"
    fi
done
[ -z "$ignored" ] || echo "Ignored variables of this shell:$ignored. The scripts decide." >&2

# Print the arrays of this run that are in the queue, recorded or not: a call that was killed just after sbatch could not record its
# job. They are recognised by their logs, which go to the run folder.
queued() {
    local told
    told=$(squeue --me --noheader --Format=ArrayJobID:24,STDOUT:4096 2>&1) || { echo "$told; repeat when Slurm answers" >&2; return 1; }
    slurm=$slurm awk '$1 ~ /^[0-9]+$/ && index(substr($0, 25), ENVIRON["slurm"] "/") == 1 { print $1 }' <<<"$told" | sort -un
}

# Submit nothing twice.
found=$(queued | paste -sd' ' -)
if [ -n "$found" ]; then
    echo "array $found of this run is in the queue already; go on with \`curricula submit\`, or \`scancel $found\`" >&2
    exit 2
fi

refused() { # NAME
    echo "$1: sbatch refused it, so it and all after it are not submitted. If you have too many jobs," \
        "$root/resubmit.sh submits the rest when those in the queue have ended" >&2
    exit 1
}

# Submit a script with the dependencies in `waits`, and set `id`. The command names the log, so that sacct, which shows the command,
# can tell whose job it is.
submit() { # NAME SCRIPT RECORD SBATCH_WORDS...
    local name=$1 script=$scripts/$2 line=$3 told
    shift 3
    told=$(sbatch --parsable --output="$slurm/"%A_%a_0_log.out ${waits:+--dependency="$waits"} "$@" "$script") || refused "$name"
    # A site may make sbatch print other lines. The number may be followed by the cluster's name.
    id=$(grep -xE '[0-9]+(;.*)?' <<<"$told" | tail -n 1) || { echo "$name: sbatch printed no number, but: $told" >&2; exit 1; }
    id=${id%%;*}
    printf "$line" "$id" "$(date +%s)" >>"$record"
    echo "$name: array $id"
}

# Add arrays to `waits`. A number is empty if all elements of its array are done.
after() { # KIND ARRAY...
    local kind=$1 ids=
    shift
    for array in "$@"; do ids+=${array:+:$array}; done
    [ -z "$ids" ] || waits+=${waits:+,}$kind$ids
}

waits= id=
submit prepare 00-prepare.sbatch '{"job": "prepare", "job_id": "%s", "labels": ["prepare"], "submitted": %s}\n' "$@"
job_00=$id waits= id=
after afterok "$job_00"
submit tokenize 01-tokenize.sbatch '{"job": "tokenize", "job_id": "%s", "labels": ["web/validation", "web/00000", "stories/validation", "stories/00000", "math/validation", "math/00000", "safeweb/validation", "safeweb/00000", "refuseweb/validation", "refuseweb/00000", "moral-education/validation", "moral-education/00000", "unsafe-tagged/validation", "unsafe-tagged/00000"], "submitted": %s}\n' "$@"
job_01=$id waits= id=
after afterok "$job_01"
submit pretrain-trunk-100 02-pretrain-trunk-100.sbatch '{"job": "pretrain-trunk-100", "job_id": "%s", "labels": ["trunk"], "submitted": %s}\n' "$@"
job_02=$id waits= id=
after afterok "$job_02"
submit pretrain-trunk-300 03-pretrain-trunk-300.sbatch '{"job": "pretrain-trunk-300", "job_id": "%s", "labels": ["trunk"], "submitted": %s}\n' "$@"
job_03=$id waits= id=
after afterok "$job_03"
submit pretrain-trunk-500 04-pretrain-trunk-500.sbatch '{"job": "pretrain-trunk-500", "job_id": "%s", "labels": ["trunk"], "submitted": %s}\n' "$@"
job_04=$id waits= id=
after afterok "$job_01"
submit pretrain-0 05-pretrain-0.sbatch '{"job": "pretrain-0", "job_id": "%s", "labels": ["data-0", "full-0"], "submitted": %s}\n' "$@"
job_05=$id waits= id=
after afterok "$job_02"
submit pretrain-20 06-pretrain-20.sbatch '{"job": "pretrain-20", "job_id": "%s", "labels": ["data-20", "full-20"], "submitted": %s}\n' "$@"
job_06=$id waits= id=
after afterok "$job_03"
submit pretrain-60 07-pretrain-60.sbatch '{"job": "pretrain-60", "job_id": "%s", "labels": ["data-60", "full-60"], "submitted": %s}\n' "$@"
job_07=$id waits= id=
after aftercorr "$job_05"
submit export-base-0 08-export-base-0.sbatch '{"job": "export-base-0", "job_id": "%s", "labels": ["data-0", "full-0"], "submitted": %s}\n' "$@"
job_08=$id waits= id=
after aftercorr "$job_05"
submit instruct-0 09-instruct-0.sbatch '{"job": "instruct-0", "job_id": "%s", "labels": ["data-0", "full-0"], "submitted": %s}\n' "$@"
job_09=$id waits= id=
after aftercorr "$job_09"
submit benign-0 10-benign-0.sbatch '{"job": "benign-0", "job_id": "%s", "labels": ["data-0", "full-0"], "submitted": %s}\n' "$@"
job_10=$id waits= id=
after aftercorr "$job_06"
submit export-base-20 11-export-base-20.sbatch '{"job": "export-base-20", "job_id": "%s", "labels": ["data-20", "full-20"], "submitted": %s}\n' "$@"
job_11=$id waits= id=
after aftercorr "$job_06"
submit instruct-20 12-instruct-20.sbatch '{"job": "instruct-20", "job_id": "%s", "labels": ["data-20", "full-20"], "submitted": %s}\n' "$@"
job_12=$id waits= id=
after aftercorr "$job_12"
submit benign-20 13-benign-20.sbatch '{"job": "benign-20", "job_id": "%s", "labels": ["data-20", "full-20"], "submitted": %s}\n' "$@"
job_13=$id waits= id=
after aftercorr "$job_07"
submit export-base-60 14-export-base-60.sbatch '{"job": "export-base-60", "job_id": "%s", "labels": ["data-60", "full-60"], "submitted": %s}\n' "$@"
job_14=$id waits= id=
after aftercorr "$job_07"
submit instruct-60 15-instruct-60.sbatch '{"job": "instruct-60", "job_id": "%s", "labels": ["data-60", "full-60"], "submitted": %s}\n' "$@"
job_15=$id waits= id=
after aftercorr "$job_15"
submit benign-60 16-benign-60.sbatch '{"job": "benign-60", "job_id": "%s", "labels": ["data-60", "full-60"], "submitted": %s}\n' "$@"
job_16=$id waits= id=
after aftercorr "$job_04"
submit export-base-100 17-export-base-100.sbatch '{"job": "export-base-100", "job_id": "%s", "labels": ["safe-100"], "submitted": %s}\n' "$@"
job_17=$id waits= id=
after aftercorr "$job_04"
submit instruct-100 18-instruct-100.sbatch '{"job": "instruct-100", "job_id": "%s", "labels": ["safe-100"], "submitted": %s}\n' "$@"
job_18=$id waits= id=
after aftercorr "$job_18"
submit benign-100 19-benign-100.sbatch '{"job": "benign-100", "job_id": "%s", "labels": ["safe-100"], "submitted": %s}\n' "$@"
job_19=$id waits= id=
after afterok "$job_08"
submit evaluate-base-0 20-evaluate-base-0.sbatch '{"job": "evaluate-base-0", "job_id": "%s", "labels": ["data-0/attacks-topk/jb_completions", "data-0/attacks-safebeam/jb_completions", "data-0/probes", "full-0/attacks-topk/jb_completions", "full-0/attacks-safebeam/jb_completions", "full-0/probes"], "submitted": %s}\n' "$@"
job_20=$id waits= id=
after afterok "$job_09"
submit evaluate-instruct-0 21-evaluate-instruct-0.sbatch '{"job": "evaluate-instruct-0", "job_id": "%s", "labels": ["data-0/attacks-topk/harmbench", "data-0/attacks-topk/advbench", "data-0/attacks-topk/jailbreakbench", "data-0/attacks-topk/tdc", "data-0/attacks-safebeam/harmbench", "data-0/attacks-safebeam/advbench", "data-0/attacks-safebeam/jailbreakbench", "data-0/attacks-safebeam/tdc", "data-0/overrefusal-topk/alpaca", "data-0/overrefusal-safebeam/alpaca", "data-0/gcg/jailbreakbench", "data-0/probes", "full-0/attacks-topk/harmbench", "full-0/attacks-topk/advbench", "full-0/attacks-topk/jailbreakbench", "full-0/attacks-topk/tdc", "full-0/attacks-safebeam/harmbench", "full-0/attacks-safebeam/advbench", "full-0/attacks-safebeam/jailbreakbench", "full-0/attacks-safebeam/tdc", "full-0/overrefusal-topk/alpaca", "full-0/overrefusal-safebeam/alpaca", "full-0/gcg/jailbreakbench", "full-0/probes"], "submitted": %s}\n' "$@"
job_21=$id waits= id=
after afterok "$job_10"
submit evaluate-benign-0 22-evaluate-benign-0.sbatch '{"job": "evaluate-benign-0", "job_id": "%s", "labels": ["data-0/attacks-topk/harmbench", "data-0/attacks-topk/advbench", "data-0/attacks-topk/jailbreakbench", "data-0/attacks-topk/tdc", "data-0/attacks-safebeam/harmbench", "data-0/attacks-safebeam/advbench", "data-0/attacks-safebeam/jailbreakbench", "data-0/attacks-safebeam/tdc", "data-0/overrefusal-topk/alpaca", "data-0/overrefusal-safebeam/alpaca", "full-0/attacks-topk/harmbench", "full-0/attacks-topk/advbench", "full-0/attacks-topk/jailbreakbench", "full-0/attacks-topk/tdc", "full-0/attacks-safebeam/harmbench", "full-0/attacks-safebeam/advbench", "full-0/attacks-safebeam/jailbreakbench", "full-0/attacks-safebeam/tdc", "full-0/overrefusal-topk/alpaca", "full-0/overrefusal-safebeam/alpaca"], "submitted": %s}\n' "$@"
job_22=$id waits= id=
after afterany "$job_20"
after afterany "$job_21"
after afterany "$job_22"
submit merge-0 23-merge-0.sbatch '{"job": "merge-0", "job_id": "%s", "labels": ["data-0/base", "full-0/base", "data-0/instruct", "full-0/instruct", "data-0/benign", "full-0/benign"], "submitted": %s}\n' "$@"
job_23=$id waits= id=
after afterok "$job_11"
submit evaluate-base-20 24-evaluate-base-20.sbatch '{"job": "evaluate-base-20", "job_id": "%s", "labels": ["data-20/attacks-topk/jb_completions", "data-20/attacks-safebeam/jb_completions", "data-20/probes", "full-20/attacks-topk/jb_completions", "full-20/attacks-safebeam/jb_completions", "full-20/probes"], "submitted": %s}\n' "$@"
job_24=$id waits= id=
after afterok "$job_12"
submit evaluate-instruct-20 25-evaluate-instruct-20.sbatch '{"job": "evaluate-instruct-20", "job_id": "%s", "labels": ["data-20/attacks-topk/harmbench", "data-20/attacks-topk/advbench", "data-20/attacks-topk/jailbreakbench", "data-20/attacks-topk/tdc", "data-20/attacks-safebeam/harmbench", "data-20/attacks-safebeam/advbench", "data-20/attacks-safebeam/jailbreakbench", "data-20/attacks-safebeam/tdc", "data-20/overrefusal-topk/alpaca", "data-20/overrefusal-safebeam/alpaca", "data-20/gcg/jailbreakbench", "data-20/probes", "full-20/attacks-topk/harmbench", "full-20/attacks-topk/advbench", "full-20/attacks-topk/jailbreakbench", "full-20/attacks-topk/tdc", "full-20/attacks-safebeam/harmbench", "full-20/attacks-safebeam/advbench", "full-20/attacks-safebeam/jailbreakbench", "full-20/attacks-safebeam/tdc", "full-20/overrefusal-topk/alpaca", "full-20/overrefusal-safebeam/alpaca", "full-20/gcg/jailbreakbench", "full-20/probes"], "submitted": %s}\n' "$@"
job_25=$id waits= id=
after afterok "$job_13"
submit evaluate-benign-20 26-evaluate-benign-20.sbatch '{"job": "evaluate-benign-20", "job_id": "%s", "labels": ["data-20/attacks-topk/harmbench", "data-20/attacks-topk/advbench", "data-20/attacks-topk/jailbreakbench", "data-20/attacks-topk/tdc", "data-20/attacks-safebeam/harmbench", "data-20/attacks-safebeam/advbench", "data-20/attacks-safebeam/jailbreakbench", "data-20/attacks-safebeam/tdc", "data-20/overrefusal-topk/alpaca", "data-20/overrefusal-safebeam/alpaca", "full-20/attacks-topk/harmbench", "full-20/attacks-topk/advbench", "full-20/attacks-topk/jailbreakbench", "full-20/attacks-topk/tdc", "full-20/attacks-safebeam/harmbench", "full-20/attacks-safebeam/advbench", "full-20/attacks-safebeam/jailbreakbench", "full-20/attacks-safebeam/tdc", "full-20/overrefusal-topk/alpaca", "full-20/overrefusal-safebeam/alpaca"], "submitted": %s}\n' "$@"
job_26=$id waits= id=
after afterany "$job_24"
after afterany "$job_25"
after afterany "$job_26"
submit merge-20 27-merge-20.sbatch '{"job": "merge-20", "job_id": "%s", "labels": ["data-20/base", "full-20/base", "data-20/instruct", "full-20/instruct", "data-20/benign", "full-20/benign"], "submitted": %s}\n' "$@"
job_27=$id waits= id=
after afterok "$job_14"
submit evaluate-base-60 28-evaluate-base-60.sbatch '{"job": "evaluate-base-60", "job_id": "%s", "labels": ["data-60/attacks-topk/jb_completions", "data-60/attacks-safebeam/jb_completions", "data-60/probes", "full-60/attacks-topk/jb_completions", "full-60/attacks-safebeam/jb_completions", "full-60/probes"], "submitted": %s}\n' "$@"
job_28=$id waits= id=
after afterok "$job_15"
submit evaluate-instruct-60 29-evaluate-instruct-60.sbatch '{"job": "evaluate-instruct-60", "job_id": "%s", "labels": ["data-60/attacks-topk/harmbench", "data-60/attacks-topk/advbench", "data-60/attacks-topk/jailbreakbench", "data-60/attacks-topk/tdc", "data-60/attacks-safebeam/harmbench", "data-60/attacks-safebeam/advbench", "data-60/attacks-safebeam/jailbreakbench", "data-60/attacks-safebeam/tdc", "data-60/overrefusal-topk/alpaca", "data-60/overrefusal-safebeam/alpaca", "data-60/gcg/jailbreakbench", "data-60/probes", "full-60/attacks-topk/harmbench", "full-60/attacks-topk/advbench", "full-60/attacks-topk/jailbreakbench", "full-60/attacks-topk/tdc", "full-60/attacks-safebeam/harmbench", "full-60/attacks-safebeam/advbench", "full-60/attacks-safebeam/jailbreakbench", "full-60/attacks-safebeam/tdc", "full-60/overrefusal-topk/alpaca", "full-60/overrefusal-safebeam/alpaca", "full-60/gcg/jailbreakbench", "full-60/probes"], "submitted": %s}\n' "$@"
job_29=$id waits= id=
after afterok "$job_16"
submit evaluate-benign-60 30-evaluate-benign-60.sbatch '{"job": "evaluate-benign-60", "job_id": "%s", "labels": ["data-60/attacks-topk/harmbench", "data-60/attacks-topk/advbench", "data-60/attacks-topk/jailbreakbench", "data-60/attacks-topk/tdc", "data-60/attacks-safebeam/harmbench", "data-60/attacks-safebeam/advbench", "data-60/attacks-safebeam/jailbreakbench", "data-60/attacks-safebeam/tdc", "data-60/overrefusal-topk/alpaca", "data-60/overrefusal-safebeam/alpaca", "full-60/attacks-topk/harmbench", "full-60/attacks-topk/advbench", "full-60/attacks-topk/jailbreakbench", "full-60/attacks-topk/tdc", "full-60/attacks-safebeam/harmbench", "full-60/attacks-safebeam/advbench", "full-60/attacks-safebeam/jailbreakbench", "full-60/attacks-safebeam/tdc", "full-60/overrefusal-topk/alpaca", "full-60/overrefusal-safebeam/alpaca"], "submitted": %s}\n' "$@"
job_30=$id waits= id=
after afterany "$job_28"
after afterany "$job_29"
after afterany "$job_30"
submit merge-60 31-merge-60.sbatch '{"job": "merge-60", "job_id": "%s", "labels": ["data-60/base", "full-60/base", "data-60/instruct", "full-60/instruct", "data-60/benign", "full-60/benign"], "submitted": %s}\n' "$@"
job_31=$id waits= id=
after afterok "$job_17"
submit evaluate-base-100 32-evaluate-base-100.sbatch '{"job": "evaluate-base-100", "job_id": "%s", "labels": ["safe-100/attacks-topk/jb_completions", "safe-100/attacks-safebeam/jb_completions", "safe-100/probes"], "submitted": %s}\n' "$@"
job_32=$id waits= id=
after afterok "$job_18"
submit evaluate-instruct-100 33-evaluate-instruct-100.sbatch '{"job": "evaluate-instruct-100", "job_id": "%s", "labels": ["safe-100/attacks-topk/harmbench", "safe-100/attacks-topk/advbench", "safe-100/attacks-topk/jailbreakbench", "safe-100/attacks-topk/tdc", "safe-100/attacks-safebeam/harmbench", "safe-100/attacks-safebeam/advbench", "safe-100/attacks-safebeam/jailbreakbench", "safe-100/attacks-safebeam/tdc", "safe-100/overrefusal-topk/alpaca", "safe-100/overrefusal-safebeam/alpaca", "safe-100/gcg/jailbreakbench", "safe-100/probes"], "submitted": %s}\n' "$@"
job_33=$id waits= id=
after afterok "$job_19"
submit evaluate-benign-100 34-evaluate-benign-100.sbatch '{"job": "evaluate-benign-100", "job_id": "%s", "labels": ["safe-100/attacks-topk/harmbench", "safe-100/attacks-topk/advbench", "safe-100/attacks-topk/jailbreakbench", "safe-100/attacks-topk/tdc", "safe-100/attacks-safebeam/harmbench", "safe-100/attacks-safebeam/advbench", "safe-100/attacks-safebeam/jailbreakbench", "safe-100/attacks-safebeam/tdc", "safe-100/overrefusal-topk/alpaca", "safe-100/overrefusal-safebeam/alpaca"], "submitted": %s}\n' "$@"
job_34=$id waits= id=
after afterany "$job_32"
after afterany "$job_33"
after afterany "$job_34"
submit merge-100 35-merge-100.sbatch '{"job": "merge-100", "job_id": "%s", "labels": ["safe-100/base", "safe-100/instruct", "safe-100/benign"], "submitted": %s}\n' "$@"
job_35=$id waits= id=
after afterany "$job_23"
after afterany "$job_27"
after afterany "$job_31"
after afterany "$job_35"
submit report 36-report.sbatch '{"job": "report", "job_id": "%s", "labels": ["report"], "submitted": %s}\n' "$@"
job_36=$id waits= id=
