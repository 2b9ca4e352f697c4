#!/bin/sh
# Task arithmetic in the tangent space (arXiv:2305.12827): every command, in order. sh runs/tangent.sh [MODEL]
# MODEL: ViT-Mini (default), ViT-B-32, ViT-B-16, ViT-L-14. Finished work is skipped.
set -e
cd "$(dirname "$0")/.."
MODEL=${1:-ViT-Mini}

python finetune.py --model="$MODEL" --finetuning-mode=standard
python finetune.py --model="$MODEL" --finetuning-mode=linear

# Figures 2 and 5, and the denominators of everything normalised
python eval_single_task.py --model="$MODEL" --finetuning-mode=none
python eval_single_task.py --model="$MODEL" --finetuning-mode=standard
python eval_single_task.py --model="$MODEL" --finetuning-mode=linear
python eval_single_task.py --model="$MODEL" --finetuning-mode=posthoc

# Table 1
python eval_task_addition.py --model="$MODEL" --finetuning-mode=standard
python eval_task_addition.py --model="$MODEL" --finetuning-mode=linear
python eval_task_addition.py --model="$MODEL" --finetuning-mode=posthoc

# Table 2
python eval_task_negation.py --model="$MODEL" --finetuning-mode=standard
python eval_task_negation.py --model="$MODEL" --finetuning-mode=linear
python eval_task_negation.py --model="$MODEL" --finetuning-mode=posthoc

# Figures 3, 9 and 10
python eval_disentanglement.py --model="$MODEL" --finetuning-mode=standard
python eval_disentanglement.py --model="$MODEL" --finetuning-mode=linear
python eval_disentanglement.py --model="$MODEL" --finetuning-mode=posthoc

# Figures 6, 14 and 15
python eval_ntk_localization.py --model="$MODEL"
python eval_ntk_localization.py --model="${MODEL}__init__"

# Table 3
python finetune.py --model="${MODEL}__init__" --finetuning-mode=standard
python finetune.py --model="${MODEL}__init__" --finetuning-mode=linear
python eval_single_task.py --model="${MODEL}__init__" --finetuning-mode=none
python eval_single_task.py --model="${MODEL}__init__" --finetuning-mode=standard
python eval_single_task.py --model="${MODEL}__init__" --finetuning-mode=linear
python eval_task_addition.py --model="${MODEL}__init__" --finetuning-mode=standard
python eval_task_addition.py --model="${MODEL}__init__" --finetuning-mode=linear

python make_tables.py --model="$MODEL"
python make_figures.py --model="$MODEL"
python make_report.py --model="$MODEL"
