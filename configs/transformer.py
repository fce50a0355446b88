"""The section of a configuration that says what transformer is trained (model/gpt.py)."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import model_validator

from configs.errors import InputError
from configs.section import Section, nearest_multiples, setting

P1_INIT_STD, P1_WIDTH = 0.02, 768  # P1's initial weights, and the width that they belong to


class Model(Section):
    """A transformer. By default GPT-2 as P1 trains it: pre-LayerNorm, learned positions, tied embedding and head, no biases.

    Each field is a switch in one network, so that two runs can differ in one thing.
    """

    kind: Literal["gpt"] = setting("gpt", "a transformer; networks for images have a section of their own")
    n_layer: int = setting(..., "transformer blocks", because="a plan lists every tensor", ge=1, le=1000)
    n_head: int = setting(..., "attention heads per block", ge=1)
    n_embd: int = setting(..., "width of the residual stream", ge=1)
    seq_len: int = setting(..., "context length in tokens", ge=1)
    vocab_size: int = setting(..., "rows of the embedding; at least the tokenizer's vocabulary", ge=2)
    norm: Literal["layernorm", "rmsnorm"] = setting(
        "layernorm", "what normalises before each part of a block and the head"
    )
    norm_eps: float = setting(1e-5, "what a norm adds to the variance, or to the mean square", gt=0, le=1)
    position: Literal["learned", "rotary"] = setting(
        "learned", "an embedding of its own, or queries and keys that turn (Llama)"
    )
    rotary_base: float = setting(10000.0, "of position rotary: channel i of D turns by base^(−2i/D) a token", gt=1)
    activation: Literal["gelu", "gelu_tanh", "swiglu", "relu2"] = setting(
        "gelu", "exact GELU, or the tanh form of the released GPT-2; SwiGLU with a third matrix (Llama); squared ReLU"
    )
    mlp_width: int | None = setting(None, "width inside the MLP; null: 4·n_embd, and swiglu wants a number", ge=1)
    n_kv_head: int | None = setting(
        None, "heads of keys and values, each for n_head/n_kv_head of queries; null: n_head", ge=1
    )
    qk_norm: bool = setting(False, "queries and keys are normalised per head, with a gain for all heads (Qwen3)")
    attention: Literal["sdpa", "math", "stable"] = setting(
        "sdpa",
        "arithmetic of attention: torch's choice of kernel; two products with float32 scores and softmax; the same with the row "
        "maximum moved where it is not unique, against biased rounding in bfloat16 (2510.04212)",
    )
    bias: bool = setting(False, "biases in linear layers and LayerNorms")
    tied_head: bool = setting(True, "the output head is the token embedding")
    head_scale: bool = setting(
        False, "one learned number, 1 at the start, multiplies the logits: a head whose norm is held can still sharpen"
    )
    layernorm_gain: bool = setting(True, "learnable gains of norms (false: plain normalisation)")
    dropout: float = setting(0.0, "dropout rate", ge=0, lt=1)
    init_std: float | None = setting(
        None,
        "standard deviation of the initial weights; null: 0.02·√(768/n_embd), P1's at any width; residual projections get "
        "it over √(2·n_layer)",
        gt=0,
    )

    @model_validator(mode="after")
    def _init_std_of_the_width(self) -> Model:
        # A narrower network needs larger weights for activations of the same size. The number is what is recorded.
        if self.init_std is None:
            self.__dict__["init_std"] = P1_INIT_STD * math.sqrt(P1_WIDTH / self.n_embd)
        return self

    @model_validator(mode="after")
    def _heads_divide_width(self) -> Model:
        if self.n_embd % self.n_head:
            below, above = nearest_multiples(self.n_embd, self.n_head)
            raise InputError(
                f"n_embd {self.n_embd} is not divisible by n_head {self.n_head}; nearest n_embd: {below} or {above}"
            )
        if self.n_head % self.kv_heads:
            fitting = ", ".join(str(n) for n in range(1, self.n_head + 1) if self.n_head % n == 0)
            raise InputError(f"n_kv_head {self.n_kv_head} does not divide n_head {self.n_head}; these do: {fitting}")
        return self

    @model_validator(mode="after")
    def _switches_fit(self) -> Model:
        width = self.n_embd // self.n_head
        if self.position == "rotary" and width % 2:
            raise InputError(
                f"position rotary turns pairs of channels, and a head of n_embd {self.n_embd} / n_head {self.n_head} has {width}; "
                "choose n_head so that a head's width is even"
            )
        if self.position == "learned" and self.rotary_base != type(self).model_fields["rotary_base"].default:
            raise InputError("rotary_base does nothing with position learned; leave it out, or set position rotary")
        if self.activation == "swiglu" and self.mlp_width is None:
            raise InputError(
                f"activation swiglu needs mlp_width: with three matrices {round(8 * self.n_embd / 3)} gives about as many "
                f"parameters as {4 * self.n_embd} with two"
            )
        if self.bias and self.norm == "rmsnorm":
            raise InputError("bias true with norm rmsnorm: an RMSNorm has no bias; set bias false or norm layernorm")
        if self.bias and not self.layernorm_gain:
            raise InputError(
                "bias true with layernorm_gain false: a plain LayerNorm has no bias; set bias false or layernorm_gain true"
            )
        return self

    @model_validator(mode="after")
    def _one_name_for_one_network(self) -> Model:
        # A number that says what null says is recorded as null, so that the same run has the same id.
        if self.n_kv_head == self.n_head:
            self.__dict__["n_kv_head"] = None
        if self.mlp_width == 4 * self.n_embd and self.activation != "swiglu":
            self.__dict__["mlp_width"] = None
        return self

    @property
    def kv_heads(self) -> int:
        """Heads of keys and values."""
        return self.n_kv_head or self.n_head

    @property
    def mlp_hidden(self) -> int:
        """Width inside the MLP."""
        return self.mlp_width or 4 * self.n_embd
