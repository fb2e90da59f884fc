"""A BERT made small while the Hugging Face Trainer trains it.

Run: python examples/hf_bert.py (needs: pip install 'npn[transformers]'; synthetic sentences, nothing is downloaded).
"""

import tempfile

import torch
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments

import npn
from npn.integrations.transformers import PlasticityCallback, PlasticTrainerMixin


class PlasticTrainer(PlasticTrainerMixin, Trainer):
    """The Trainer, with gates."""


def sentences(count: int) -> list[dict[str, torch.Tensor]]:
    """Eight words each; does word 7 come?"""
    words = torch.randint(8, 30, (count, 8))
    labels = torch.randint(2, (count,))
    words[torch.arange(count), torch.randint(8, (count,))] = torch.where(labels == 1, 7, words[:, 0])
    return [{"input_ids": row, "labels": label} for row, label in zip(words, labels, strict=True)]


def main() -> tuple[float, int, int]:
    """Train, and return validation loss and parameters before and after."""
    torch.manual_seed(0)
    model = BertForSequenceClassification(
        BertConfig(
            vocab_size=30, hidden_size=16, num_hidden_layers=1, num_attention_heads=4, intermediate_size=64,
            max_position_embeddings=8, attn_implementation="eager",
        )
    )  # fmt: skip
    plasticity = PlasticityCallback(
        npn.Schedule(npn.Stage("pretrain", 3), npn.Stage("plastic", 4, k=7.0), npn.Stage("finetune", 2)),
        penalty=npn.Penalty(cost="params", weight=1e-4),
        gate_lr=5e-2,
    )
    before = npn.count_params(model)
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder, num_train_epochs=9, per_device_train_batch_size=32, learning_rate=5e-3,
            eval_strategy="epoch", save_strategy="no", report_to=[], disable_tqdm=True, use_cpu=True,
        )  # fmt: skip
        trainer = PlasticTrainer(
            model=model, args=arguments, train_dataset=sentences(512), eval_dataset=sentences(256),
            callbacks=[plasticity],
        )  # fmt: skip
        trainer.train()
        loss = trainer.evaluate()["eval_loss"]
    small = plasticity.export()  # a plain BertForSequenceClassification
    print(f"{before} parameters became {npn.count_params(small)}; validation loss {loss:.3f}")
    return loss, before, npn.count_params(small)


if __name__ == "__main__":
    main()
