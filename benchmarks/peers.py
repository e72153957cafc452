"""Other people's networks beside ours: adapters for `python -m study.bench --peer`.

    pip install -e ".[peers]"
    python -m study.bench dit-s/2 --peer timm-dit=benchmarks/peers.py:timm_blocks \\
        --peer diffusers-dit=benchmarks/peers.py:diffusers_dit --mode forward train
    python -m study.bench unet-small --peer diffusers-unet=benchmarks/peers.py:diffusers_unet --mode forward train

Each takes our network and returns theirs, with our weights where their layout allows. The outputs are compared
before anything is timed (docs/measuring.md).
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from models.denoiser import Denoiser, require
from models.dit import DiT, DiTConfig
from models.layers.unet_blocks import AttentionBlock, ResBlock
from models.unet import UNetConfig


def timm_blocks(ours: Denoiser) -> nn.Module:
    """Our DiT with timm's attention and MLP in every block, as the official DiT is built."""
    from timm.layers import Mlp
    from timm.models.vision_transformer import Attention

    config = dit_config(ours)
    theirs = copy.deepcopy(ours)
    assert isinstance(theirs, DiT)
    for block in theirs.blocks:
        attn = Attention(config.width, num_heads=config.heads, qkv_bias=True)
        mlp = Mlp(config.width, config.hidden, act_layer=lambda: nn.GELU(approximate="tanh"))
        attn.load_state_dict(block.attn.state_dict())
        mlp.load_state_dict(block.mlp.state_dict())
        block.attn, block.mlp = attn, mlp
    return theirs


class Called(nn.Module):
    """A diffusers model, called as ours are."""

    def __init__(self, model: nn.Module, shares_weights: bool) -> None:
        super().__init__()
        self.model, self.shares_weights = model, shares_weights

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None) -> Tensor:
        return self.model(x, t, class_labels=y).sample


def diffusers_dit(ours: Denoiser) -> nn.Module:
    """DiTTransformer2DModel with our weights; its blocks embed time and label each for itself, from copies."""
    from diffusers import DiTTransformer2DModel

    config = dit_config(ours)
    require(config.has_null_class, "classes, class_dropout", (config.classes, config.class_dropout), "above 0")
    require(config.mlp_ratio == 4, "mlp_ratio", config.mlp_ratio, "4, as in DiTTransformer2DModel")
    require(config.size[0] == config.size[1], "size", config.size, "square")
    model = DiTTransformer2DModel(
        num_attention_heads=config.heads,
        attention_head_dim=config.width // config.heads,
        in_channels=config.channels,
        out_channels=config.out_channels,
        num_layers=config.depth,
        sample_size=config.size[0],
        patch_size=config.P,
        num_embeds_ada_norm=config.classes,
        norm_eps=1e-6,
    )
    model.load_state_dict(diffusers_layout(ours.state_dict(), config.depth), strict=True)
    for block in model.transformer_blocks:
        block.norm1.emb.time_proj.downscale_freq_shift = 0  # DiT's own frequencies; the released pipeline shifts them
        block.norm1.emb.class_embedder.dropout_prob = 0.0  # our loop drops labels before the call
    return Called(model, shares_weights=True)


def diffusers_layout(ours: dict[str, Tensor], depth: int) -> dict[str, Tensor]:
    """DiT's own key names to those of diffusers."""
    theirs: dict[str, Tensor] = {}

    def linear(to: str, name: str) -> None:
        theirs[f"{to}.weight"], theirs[f"{to}.bias"] = ours[f"{name}.weight"], ours[f"{name}.bias"]

    linear("pos_embed.proj", "x_embedder.proj")
    linear("proj_out_1", "final_layer.adaLN_modulation.1")
    linear("proj_out_2", "final_layer.linear")
    for number in range(depth):
        to, block = f"transformer_blocks.{number}", f"blocks.{number}"
        linear(f"{to}.norm1.emb.timestep_embedder.linear_1", "t_embedder.mlp.0")
        linear(f"{to}.norm1.emb.timestep_embedder.linear_2", "t_embedder.mlp.2")
        table = "embedding_table.weight"
        theirs[f"{to}.norm1.emb.class_embedder.{table}"] = ours[f"y_embedder.{table}"]
        linear(f"{to}.norm1.linear", f"{block}.adaLN_modulation.1")
        for kind in ("weight", "bias"):
            parts = ours[f"{block}.attn.qkv.{kind}"].chunk(3)
            theirs |= {f"{to}.attn1.to_{name}.{kind}": part for name, part in zip("qkv", parts, strict=True)}
        linear(f"{to}.attn1.to_out.0", f"{block}.attn.proj")
        linear(f"{to}.ff.net.0.proj", f"{block}.mlp.fc1")
        linear(f"{to}.ff.net.2", f"{block}.mlp.fc2")
    return theirs


def diffusers_unet(ours: Denoiser) -> nn.Module:
    """UNet2DModel with our weights: the two enumerate the same layers in the same order."""
    from diffusers import UNet2DModel

    config = ours.config
    if not isinstance(config, UNetConfig) or config.attention != "self" or config.attention_order != "legacy":
        raise ValueError(f"{type(config).__name__} is not valid: must be a U-Net with legacy self-attention")
    require(config.head_width is not None, "head_width", config.head_width, "given, as in UNet2DModel")
    require(config.resample == "resblock", "resample", config.resample, "resblock")
    attends = [2**level in config.attention_factors for level in range(len(config.widths))]
    model = UNet2DModel(
        sample_size=config.size,
        in_channels=config.channels,
        out_channels=config.out_channels,
        down_block_types=tuple("AttnDownBlock2D" if here else "ResnetDownsampleBlock2D" for here in attends),
        up_block_types=tuple("AttnUpBlock2D" if here else "ResnetUpsampleBlock2D" for here in reversed(attends)),
        block_out_channels=tuple(config.widths),
        layers_per_block=config.res_blocks,
        downsample_type="resnet",
        upsample_type="resnet",
        dropout=config.dropout,
        attention_head_dim=config.head_width,
        norm_num_groups=config.norm_groups,
        attn_norm_num_groups=config.norm_groups,
        resnet_time_scale_shift="scale_shift" if config.modulation == "scale_shift" else "default",
        time_embedding_dim=4 * config.width,
        num_class_embeds=config.label_rows or None,
    )
    copy_unet(ours, model)
    return Called(model, shares_weights=True)


RES = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}
ENDS = {
    "input_blocks.0.0": "conv_in",
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "label_emb": "class_embedding",
    "out.0": "conv_norm_out",
    "out.2": "conv_out",
}


@torch.no_grad()
def copy_unet(ours: nn.Module, theirs: nn.Module) -> None:
    """Residual and attention layers pair up in the order of their work; the ends by name."""
    body = nn.ModuleList([*theirs.down_blocks, theirs.mid_block, *theirs.up_blocks])
    for kind, name, copied in ((ResBlock, "ResnetBlock2D", copy_res), (AttentionBlock, "Attention", copy_attention)):
        mine = [module for module in ours.modules() if isinstance(module, kind)]
        other = [module for module in body.modules() if type(module).__name__ == name]
        for pair in zip(mine, other, strict=True):
            copied(*pair)
    named = dict(ours.named_modules())
    for name, to in ENDS.items():
        if name in named:
            theirs.get_submodule(to).load_state_dict(named[name].state_dict())


def copy_res(mine: ResBlock, other: nn.Module) -> None:
    renamed = {}
    for key, value in mine.state_dict().items():
        layer, _, kind = key.rpartition(".")
        renamed[f"{RES[layer]}.{kind}"] = value
    other.load_state_dict(renamed)


def copy_attention(mine: AttentionBlock, other: nn.Module) -> None:
    """`qkv` holds (heads, [q, k, v], channels of a head) in its rows."""
    other.group_norm.load_state_dict(mine.norm.state_dict())
    for kind in ("weight", "bias"):
        parts = getattr(mine.qkv, kind).unflatten(0, (mine.heads, 3, -1)).unbind(1)
        for name, part in zip("qkv", parts, strict=True):
            target = getattr(other.get_submodule(f"to_{name}"), kind)
            target.copy_(part.flatten(0, 1).reshape(target.shape))
        target = getattr(other.to_out[0], kind)
        target.copy_(getattr(mine.proj_out, kind).reshape(target.shape))


def dit_config(ours: Denoiser) -> DiTConfig:
    config = ours.config
    if not isinstance(config, DiTConfig):
        raise ValueError(f"{type(config).__name__} is not valid: must be a DiT, which this peer stands in for")
    return config
