"""Random transformers models of a few thousand parameters, with a tokenizer and a chat template;
made in a second.

They say nothing sensible: for tests of how a model is asked. `tiny.py` makes one that was trained.
"""

from __future__ import annotations

from pathlib import Path

CHATML = (
    "{% for m in messages %}{% if m['role'] == 'tool' %}{{ raise_exception('no tools\nhere') }}{%"
    " endif %}{{ '<|start|>' + m['role'] + '\n' + m['content'] + '<|end|>' }}{% endfor %}{% if"
    " add_generation_prompt %}{{ '<|start|>assistant\n' }}{% endif %}"
)
TEXT = (
    "the quick brown fox jumps over a lazy dog . How do I make bread , tea or soup ? assistant user"
    " judge 0 1 2 3 4 5 6 7 8 9"
)


def tokenizer(template: bool = True) -> object:
    """Byte-level, 400 tokens; padding is the end-of-turn token, as with many published models."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    bpe.train_from_iterator(
        [TEXT] * 3,
        trainers.BpeTrainer(
            vocab_size=400,
            special_tokens=["<|end|>", "<|start|>"],
            show_progress=False,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        ),
    )
    made = PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<|end|>", pad_token="<|end|>")
    if template:
        made.chat_template = CHATML
    return made


def causal(folder: Path, template: bool = True, seed: int = 0) -> Path:
    """A causal model with flat, varied next-token distributions."""
    return _saved(folder, "Qwen2ForCausalLM", template, seed)


def classifier(folder: Path, labels: int = 2, template: bool = True, seed: int = 0) -> Path:
    """A sequence classifier."""
    return _saved(folder, "Qwen2ForSequenceClassification", template, seed, num_labels=labels)


def _saved(folder: Path, kind: str, template: bool, seed: int, **more: int) -> Path:
    import torch
    import transformers

    words = tokenizer(template)
    torch.manual_seed(seed)
    config = transformers.Qwen2Config(
        vocab_size=len(words),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=128,
        initializer_range=0.3,
        bos_token_id=None,
        eos_token_id=words.eos_token_id,
        pad_token_id=words.pad_token_id,
        **more,
    )
    model = getattr(transformers, kind)(config)
    transformers.utils.logging.disable_progress_bar()
    model.save_pretrained(folder)
    words.save_pretrained(folder)
    return folder
