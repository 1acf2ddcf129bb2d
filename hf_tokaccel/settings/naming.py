"""Short names of settings for tables."""

from __future__ import annotations

from dataclasses import fields

from .clustering import MASK_SHIFTS, TokenClusteringConfig


def group_name(setting: TokenClusteringConfig) -> str:
    """What decides the cost of a setting: its grid and its layers."""
    until = "" if setting.reconstruct_after is None else f" to {setting.reconstruct_after}"
    return f"{'x'.join(map(str, setting.cluster_grid))} after {setting.cluster_after}{until}"


def setting_name(setting: TokenClusteringConfig) -> str:
    """Short name that tells a setting from the others of its group: expansion and whatever is not the default."""
    said = {"cluster_after", "cluster_grid", "reconstruct_after", "expansion", "normalization", "version", "method"}
    if setting.decode_clusters in (None, setting.usually_decodes_clusters):
        said.add("decode_clusters")  # It is what follows from the rest of the setting.
    names = [f.name for f in fields(setting) if f.name not in said]
    values = {name: getattr(setting, name) for name in names}
    plain = {name: (getattr(TokenClusteringConfig, name),) for name in names}
    plain["mask_shift"] += (MASK_SHIFTS[0],)  # What an open field resolves to is not news in a name.
    changed = [f"{name}={value}" for name, value in values.items() if value not in plain[name]]
    return ", ".join([group_name(setting), setting.expansion, *changed])
