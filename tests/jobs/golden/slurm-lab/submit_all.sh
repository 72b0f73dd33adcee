#!/bin/bash
# Submits all jobs of study demo with their dependencies, each to be put into the queue once. Words given here go to every
# sbatch, such as  ./submit_all.sh --nice=100
set -euo pipefail
umask 077
cd "$(dirname "${BASH_SOURCE[0]}")"
slurm=/RUN/slurm
mkdir -p "$slurm"
if [ -s "$slurm/submissions.jsonl" ]; then
    echo "$slurm/submissions.jsonl: this run was submitted before; go on with \`curricula submit\` or \`curricula retry\`" >&2
    exit 2
fi

job_00=$(sbatch --parsable "$@" 00-prepare.sbatch)
job_00=${job_00%%;*} # without the cluster's name
printf '{"job": "prepare", "job_id": "%s", "labels": ["prepare"], "submitted": %s}\n' "$job_00" "$(date +%s)" >>"$slurm/submissions.jsonl"
echo "prepare: array $job_00 of 1"
job_01=$(sbatch --parsable --dependency="afterok:${job_00}" "$@" 01-tokenize.sbatch)
job_01=${job_01%%;*} # without the cluster's name
printf '{"job": "tokenize", "job_id": "%s", "labels": ["web/validation", "web/00000", "stories/validation", "stories/00000", "math/validation", "math/00000", "safeweb/validation", "safeweb/00000", "refuseweb/validation", "refuseweb/00000", "moral-education/validation", "moral-education/00000", "unsafe-tagged/validation", "unsafe-tagged/00000"], "submitted": %s}\n' "$job_01" "$(date +%s)" >>"$slurm/submissions.jsonl"
echo "tokenize: array $job_01 of 14"
job_02=$(sbatch --parsable --dependency="afterok:${job_01}" "$@" 02-pretrain-trunk-100.sbatch)
job_02=${job_02%%;*} # without the cluster's name
printf '{"job": "pretrain-trunk-100", "job_id": "%s", "labels": ["trunk"], "submitted": %s}\n' "$job_02" "$(date +%s)" >>"$slurm/submissions.jsonl"
echo "pretrain-trunk-100: array $job_02 of 1"
job_03=$(sbatch --parsable --dependency="afterok:${job_02}" "$@" 03-pretrain-trunk-300.sbatch)
job_03=${job_03%%;*} # without the cluster's name
printf '{"job": "pretrain-trunk-300", "job_id": "%s", "labels": ["trunk"], "submitted": %s}\n' "$job_03" "$(date +%s)" >>"$slurm/submissions.jsonl"
echo "pretrain-trunk-300: array $job_03 of 1"
job_04=$(sbatch --parsable --dependency="afterok:${job_03}" "$@" 04-pretrain-trunk-500.sbatch)
job_04=${job_04%%;*} # without the cluster's name
printf '{"job": "pretrain-trunk-500", "job_id": "%s", "labels": ["trunk"], "submitted": %s}\n' "$job_04" "$(date +%s)" >>"$slurm/submissions.jsonl"
echo "pretrain-trunk-500: array $job_04 of 1"
job_05=$(sbatch --parsable --dependency="afterok:${job_01}" "$@" 05-pretrain-0.sbatch)
job_05=${job_05%%;*} # without the cluster's name
printf '{"job": "pretrain-0", "job_id": "%s", "labels": ["data-0", "full-0"], "submitted": %s}\n' "$job_05" "$(date +%s)" >>"$slurm/submissions.jsonl"
echo "pretrain-0: array $job_05 of 2"
job_06=$(sbatch --parsable --dependency="afterok:${job_02}" "$@" 06-pretrain-20.sbatch)
job_06=${job_06%%;*} # without the cluster's name
printf '{"job": "pretrain-20", "job_id": "%s", "labels": ["data-20", "full-20"], "submitted": %s}\n' "$job_06" "$(date +%s)" >>"$slurm/submissions.jsonl"
echo "pretrain-20: array $job_06 of 2"
job_07=$(sbatch --parsable --dependency="afterok:${job_03}" "$@" 07-pretrain-60.sbatch)
job_07=${job_07%%;*} # without the cluster's name
printf '{"job": "pretrain-60", "job_id": "%s", "labels": ["data-60", "full-60"], "submitted": %s}\n' "$job_07" "$(date +%s)" >>"$slurm/submissions.jsonl"
echo "pretrain-60: array $job_07 of 2"
job_08=$(sbatch --parsable --dependency="aftercorr:${job_05}" "$@" 08-export-base-0.sbatch)
job_08=${job_08%%;*} # without the cluster's name
printf '{"job": "export-base-0", "job_id": "%s", "labels": ["data-0", "full-0"], "submitted": %s}\n' "$job_08" "$(date +%s)" >>"$slurm/submissions.jsonl"
echo "export-base-0: array $job_08 of 2"
job_09=$(sbatch --parsable --dependency="aftercorr:${job_08}" "$@" 09-instruct-0.sbatch)
job_09=${job_09%%;*} # without the cluster's name
printf '{"job": "instruct-0", "job_id": "%s", "labels": ["data-0", "full-0"], "submitted": %s}\n' "$job_09" "$(date +%s)" >>"$slurm/submissions.jsonl"
echo "instruct-0: array $job_09 of 2"
job_10=$(sbatch --parsable --dependency="aftercorr:${job_09}" "$@" 10-export-instruct-0.sbatch)
job_10=${job_10%%;*} # without the cluster's name
printf '{"job": "export-instruct-0", "job_id": "%s", "labels": ["data-0", "full-0"], "submitted": %s}\n' "$job_10" "$(date +%s)" >>"$slurm/submissions.jsonl"
echo "export-instruct-0: array $job_10 of 2"
job_11=$(sbatch --parsable --dependency="aftercorr:${job_10}" "$@" 11-benign-0.sbatch)
job_11=${job_11%%;*} # without the cluster's name
printf '{"job": "benign-0", "job_id": "%s", "labels": ["data-0", "full-0"], "submitted": %s}\n' "$job_11" "$(date +%s)" >>"$slurm/submissions.jsonl"
echo "benign-0: array $job_11 of 2"
job_12=$(sbatch --parsable --dependency="aftercorr:${job_11}" "$@" 12-export-benign-0.sbatch)
job_12=${job_12%%;*} # without the cluster's name
printf '{"job": "export-benign-0", "job_id": "%s", "labels": ["data-0", "full-0"], "submitted": %s}\n' "$job_12" "$(date +%s)" >>"$slurm/submissions.jsonl"
echo "export-benign-0: array $job_12 of 2"
job_13=$(sbatch --parsable --dependency="aftercorr:${job_06}" "$@" 13-export-base-20.sbatch)
job_13=${job_13%%;*} # without the cluster's name
printf '{"job": "export-base-20", "job_id": "%s", "labels": ["data-20", "full-20"], "submitted": %s}\n' "$job_13" "$(date +%s)" >>"$slurm/submissions.jsonl"
echo "export-base-20: array $job_13 of 2"
job_14=$(sbatch --parsable --dependency="aftercorr:${job_13}" "$@" 14-instruct-20.sbatch)
job_14=${job_14%%;*} # without the cluster's name
printf '{"job": "instruct-20", "job_id": "%s", "labels": ["data-20", "full-20"], "submitted": %s}\n' "$job_14" "$(date +%s)" >>"$slurm/submissions.jsonl"
echo "instruct-20: array $job_14 of 2"
job_15=$(sbatch --parsable --dependency="aftercorr:${job_14}" "$@" 15-export-instruct-20.sbatch)
job_15=${job_15%%;*} # without the cluster's name
printf '{"job": "export-instruct-20", "job_id": "%s", "labels": ["data-20", "full-20"], "submitted": %s}\n' "$job_15" "$(date +%s)" >>"$slurm/submissions.jsonl"
echo "export-instruct-20: array $job_15 of 2"
job_16=$(sbatch --parsable --dependency="aftercorr:${job_15}" "$@" 16-benign-20.sbatch)
job_16=${job_16%%;*} # without the cluster's name
printf '{"job": "benign-20", "job_id": "%s", "labels": ["data-20", "full-20"], "submitted": %s}\n' "$job_16" "$(date +%s)" >>"$slurm/submissions.jsonl"
echo "benign-20: array $job_16 of 2"
job_17=$(sbatch --parsable --dependency="aftercorr:${job_16}" "$@" 17-export-benign-20.sbatch)
job_17=${job_17%%;*} # without the cluster's name
printf '{"job": "export-benign-20", "job_id": "%s", "labels": ["data-20", "full-20"], "submitted": %s}\n' "$job_17" "$(date +%s)" >>"$slurm/submissions.jsonl"
echo "export-benign-20: array $job_17 of 2"
job_18=$(sbatch --parsable --dependency="aftercorr:${job_07}" "$@" 18-export-base-60.sbatch)
job_18=${job_18%%;*} # without the cluster's name
printf '{"job": "export-base-60", "job_id": "%s", "labels": ["data-60", "full-60"], "submitted": %s}\n' "$job_18" "$(date +%s)" >>"$slurm/submissions.jsonl"
echo "export-base-60: array $job_18 of 2"
job_19=$(sbatch --parsable --dependency="aftercorr:${job_18}" "$@" 19-instruct-60.sbatch)
job_19=${job_19%%;*} # without the cluster's name
printf '{"job": "instruct-60", "job_id": "%s", "labels": ["data-60", "full-60"], "submitted": %s}\n' "$job_19" "$(date +%s)" >>"$slurm/submissions.jsonl"
echo "instruct-60: array $job_19 of 2"
job_20=$(sbatch --parsable --dependency="aftercorr:${job_19}" "$@" 20-export-instruct-60.sbatch)
job_20=${job_20%%;*} # without the cluster's name
printf '{"job": "export-instruct-60", "job_id": "%s", "labels": ["data-60", "full-60"], "submitted": %s}\n' "$job_20" "$(date +%s)" >>"$slurm/submissions.jsonl"
echo "export-instruct-60: array $job_20 of 2"
job_21=$(sbatch --parsable --dependency="aftercorr:${job_20}" "$@" 21-benign-60.sbatch)
job_21=${job_21%%;*} # without the cluster's name
printf '{"job": "benign-60", "job_id": "%s", "labels": ["data-60", "full-60"], "submitted": %s}\n' "$job_21" "$(date +%s)" >>"$slurm/submissions.jsonl"
echo "benign-60: array $job_21 of 2"
job_22=$(sbatch --parsable --dependency="aftercorr:${job_21}" "$@" 22-export-benign-60.sbatch)
job_22=${job_22%%;*} # without the cluster's name
printf '{"job": "export-benign-60", "job_id": "%s", "labels": ["data-60", "full-60"], "submitted": %s}\n' "$job_22" "$(date +%s)" >>"$slurm/submissions.jsonl"
echo "export-benign-60: array $job_22 of 2"
job_23=$(sbatch --parsable --dependency="aftercorr:${job_04}" "$@" 23-export-base-100.sbatch)
job_23=${job_23%%;*} # without the cluster's name
printf '{"job": "export-base-100", "job_id": "%s", "labels": ["safe-100"], "submitted": %s}\n' "$job_23" "$(date +%s)" >>"$slurm/submissions.jsonl"
echo "export-base-100: array $job_23 of 1"
job_24=$(sbatch --parsable --dependency="aftercorr:${job_23}" "$@" 24-instruct-100.sbatch)
job_24=${job_24%%;*} # without the cluster's name
printf '{"job": "instruct-100", "job_id": "%s", "labels": ["safe-100"], "submitted": %s}\n' "$job_24" "$(date +%s)" >>"$slurm/submissions.jsonl"
echo "instruct-100: array $job_24 of 1"
job_25=$(sbatch --parsable --dependency="aftercorr:${job_24}" "$@" 25-export-instruct-100.sbatch)
job_25=${job_25%%;*} # without the cluster's name
printf '{"job": "export-instruct-100", "job_id": "%s", "labels": ["safe-100"], "submitted": %s}\n' "$job_25" "$(date +%s)" >>"$slurm/submissions.jsonl"
echo "export-instruct-100: array $job_25 of 1"
job_26=$(sbatch --parsable --dependency="aftercorr:${job_25}" "$@" 26-benign-100.sbatch)
job_26=${job_26%%;*} # without the cluster's name
printf '{"job": "benign-100", "job_id": "%s", "labels": ["safe-100"], "submitted": %s}\n' "$job_26" "$(date +%s)" >>"$slurm/submissions.jsonl"
echo "benign-100: array $job_26 of 1"
job_27=$(sbatch --parsable --dependency="aftercorr:${job_26}" "$@" 27-export-benign-100.sbatch)
job_27=${job_27%%;*} # without the cluster's name
printf '{"job": "export-benign-100", "job_id": "%s", "labels": ["safe-100"], "submitted": %s}\n' "$job_27" "$(date +%s)" >>"$slurm/submissions.jsonl"
echo "export-benign-100: array $job_27 of 1"
job_28=$(sbatch --parsable --dependency="afterok:${job_08}" "$@" 28-evaluate-base-0.sbatch)
job_28=${job_28%%;*} # without the cluster's name
printf '{"job": "evaluate-base-0", "job_id": "%s", "labels": ["data-0/attacks-topk", "data-0/attacks-safebeam", "data-0/probes", "full-0/attacks-topk", "full-0/attacks-safebeam", "full-0/probes"], "submitted": %s}\n' "$job_28" "$(date +%s)" >>"$slurm/submissions.jsonl"
echo "evaluate-base-0: array $job_28 of 6"
job_29=$(sbatch --parsable --dependency="afterok:${job_10}" "$@" 29-evaluate-instruct-0.sbatch)
job_29=${job_29%%;*} # without the cluster's name
printf '{"job": "evaluate-instruct-0", "job_id": "%s", "labels": ["data-0/attacks-topk", "data-0/attacks-safebeam", "data-0/overrefusal-topk", "data-0/overrefusal-safebeam", "data-0/gcg", "data-0/probes", "full-0/attacks-topk", "full-0/attacks-safebeam", "full-0/overrefusal-topk", "full-0/overrefusal-safebeam", "full-0/gcg", "full-0/probes"], "submitted": %s}\n' "$job_29" "$(date +%s)" >>"$slurm/submissions.jsonl"
echo "evaluate-instruct-0: array $job_29 of 12"
job_30=$(sbatch --parsable --dependency="afterok:${job_12}" "$@" 30-evaluate-benign-0.sbatch)
job_30=${job_30%%;*} # without the cluster's name
printf '{"job": "evaluate-benign-0", "job_id": "%s", "labels": ["data-0/attacks-topk", "data-0/attacks-safebeam", "data-0/overrefusal-topk", "data-0/overrefusal-safebeam", "full-0/attacks-topk", "full-0/attacks-safebeam", "full-0/overrefusal-topk", "full-0/overrefusal-safebeam"], "submitted": %s}\n' "$job_30" "$(date +%s)" >>"$slurm/submissions.jsonl"
echo "evaluate-benign-0: array $job_30 of 8"
job_31=$(sbatch --parsable --dependency="afterok:${job_13}" "$@" 31-evaluate-base-20.sbatch)
job_31=${job_31%%;*} # without the cluster's name
printf '{"job": "evaluate-base-20", "job_id": "%s", "labels": ["data-20/attacks-topk", "data-20/attacks-safebeam", "data-20/probes", "full-20/attacks-topk", "full-20/attacks-safebeam", "full-20/probes"], "submitted": %s}\n' "$job_31" "$(date +%s)" >>"$slurm/submissions.jsonl"
echo "evaluate-base-20: array $job_31 of 6"
job_32=$(sbatch --parsable --dependency="afterok:${job_15}" "$@" 32-evaluate-instruct-20.sbatch)
job_32=${job_32%%;*} # without the cluster's name
printf '{"job": "evaluate-instruct-20", "job_id": "%s", "labels": ["data-20/attacks-topk", "data-20/attacks-safebeam", "data-20/overrefusal-topk", "data-20/overrefusal-safebeam", "data-20/gcg", "data-20/probes", "full-20/attacks-topk", "full-20/attacks-safebeam", "full-20/overrefusal-topk", "full-20/overrefusal-safebeam", "full-20/gcg", "full-20/probes"], "submitted": %s}\n' "$job_32" "$(date +%s)" >>"$slurm/submissions.jsonl"
echo "evaluate-instruct-20: array $job_32 of 12"
job_33=$(sbatch --parsable --dependency="afterok:${job_17}" "$@" 33-evaluate-benign-20.sbatch)
job_33=${job_33%%;*} # without the cluster's name
printf '{"job": "evaluate-benign-20", "job_id": "%s", "labels": ["data-20/attacks-topk", "data-20/attacks-safebeam", "data-20/overrefusal-topk", "data-20/overrefusal-safebeam", "full-20/attacks-topk", "full-20/attacks-safebeam", "full-20/overrefusal-topk", "full-20/overrefusal-safebeam"], "submitted": %s}\n' "$job_33" "$(date +%s)" >>"$slurm/submissions.jsonl"
echo "evaluate-benign-20: array $job_33 of 8"
job_34=$(sbatch --parsable --dependency="afterok:${job_18}" "$@" 34-evaluate-base-60.sbatch)
job_34=${job_34%%;*} # without the cluster's name
printf '{"job": "evaluate-base-60", "job_id": "%s", "labels": ["data-60/attacks-topk", "data-60/attacks-safebeam", "data-60/probes", "full-60/attacks-topk", "full-60/attacks-safebeam", "full-60/probes"], "submitted": %s}\n' "$job_34" "$(date +%s)" >>"$slurm/submissions.jsonl"
echo "evaluate-base-60: array $job_34 of 6"
job_35=$(sbatch --parsable --dependency="afterok:${job_20}" "$@" 35-evaluate-instruct-60.sbatch)
job_35=${job_35%%;*} # without the cluster's name
printf '{"job": "evaluate-instruct-60", "job_id": "%s", "labels": ["data-60/attacks-topk", "data-60/attacks-safebeam", "data-60/overrefusal-topk", "data-60/overrefusal-safebeam", "data-60/gcg", "data-60/probes", "full-60/attacks-topk", "full-60/attacks-safebeam", "full-60/overrefusal-topk", "full-60/overrefusal-safebeam", "full-60/gcg", "full-60/probes"], "submitted": %s}\n' "$job_35" "$(date +%s)" >>"$slurm/submissions.jsonl"
echo "evaluate-instruct-60: array $job_35 of 12"
job_36=$(sbatch --parsable --dependency="afterok:${job_22}" "$@" 36-evaluate-benign-60.sbatch)
job_36=${job_36%%;*} # without the cluster's name
printf '{"job": "evaluate-benign-60", "job_id": "%s", "labels": ["data-60/attacks-topk", "data-60/attacks-safebeam", "data-60/overrefusal-topk", "data-60/overrefusal-safebeam", "full-60/attacks-topk", "full-60/attacks-safebeam", "full-60/overrefusal-topk", "full-60/overrefusal-safebeam"], "submitted": %s}\n' "$job_36" "$(date +%s)" >>"$slurm/submissions.jsonl"
echo "evaluate-benign-60: array $job_36 of 8"
job_37=$(sbatch --parsable --dependency="afterok:${job_23}" "$@" 37-evaluate-base-100.sbatch)
job_37=${job_37%%;*} # without the cluster's name
printf '{"job": "evaluate-base-100", "job_id": "%s", "labels": ["safe-100/attacks-topk", "safe-100/attacks-safebeam", "safe-100/probes"], "submitted": %s}\n' "$job_37" "$(date +%s)" >>"$slurm/submissions.jsonl"
echo "evaluate-base-100: array $job_37 of 3"
job_38=$(sbatch --parsable --dependency="afterok:${job_25}" "$@" 38-evaluate-instruct-100.sbatch)
job_38=${job_38%%;*} # without the cluster's name
printf '{"job": "evaluate-instruct-100", "job_id": "%s", "labels": ["safe-100/attacks-topk", "safe-100/attacks-safebeam", "safe-100/overrefusal-topk", "safe-100/overrefusal-safebeam", "safe-100/gcg", "safe-100/probes"], "submitted": %s}\n' "$job_38" "$(date +%s)" >>"$slurm/submissions.jsonl"
echo "evaluate-instruct-100: array $job_38 of 6"
job_39=$(sbatch --parsable --dependency="afterok:${job_27}" "$@" 39-evaluate-benign-100.sbatch)
job_39=${job_39%%;*} # without the cluster's name
printf '{"job": "evaluate-benign-100", "job_id": "%s", "labels": ["safe-100/attacks-topk", "safe-100/attacks-safebeam", "safe-100/overrefusal-topk", "safe-100/overrefusal-safebeam"], "submitted": %s}\n' "$job_39" "$(date +%s)" >>"$slurm/submissions.jsonl"
echo "evaluate-benign-100: array $job_39 of 4"
job_40=$(sbatch --parsable --dependency="afterany:${job_28},afterany:${job_29},afterany:${job_30},afterany:${job_31},afterany:${job_32},afterany:${job_33},afterany:${job_34},afterany:${job_35},afterany:${job_36},afterany:${job_37},afterany:${job_38},afterany:${job_39}" "$@" 40-report.sbatch)
job_40=${job_40%%;*} # without the cluster's name
printf '{"job": "report", "job_id": "%s", "labels": ["report"], "submitted": %s}\n' "$job_40" "$(date +%s)" >>"$slurm/submissions.jsonl"
echo "report: array $job_40 of 1"
