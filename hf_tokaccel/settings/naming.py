"""Short names of settings for tables."""

from __future__ import annotations

from dataclasses import fields

from .clustering import MASK_SHIFTS, TokenClusteringConfig


def group_name(setting: TokenClusteringConfig) -> str:
    """What decides the cost of a setting: how many clusters, and its layers."""
    until = "" if setting.reconstruct_after is None else f" to {setting.reconstruct_after}"
    after = ", ".join(map(str, setting.starts))
    return f"{clusters_name(setting)} after {after}{until}"


def clusters_name(setting: TokenClusteringConfig) -> str:
    """How many clusters: 16x16, or of adaptive ones 50 % or a count, one for each step."""
    if not setting.adaptive:
        return "x".join(map(str, setting.cluster_grid))
    given = setting.clusters if isinstance(setting.clusters, tuple) else (setting.clusters,)
    return ", ".join(f"{count:.3g}" if isinstance(count, float) else str(count) for count in given)


def setting_name(setting: TokenClusteringConfig) -> str:
    """Short name that tells a setting from the others of its group: expansion and whatever is not the default."""
    said = {"cluster_after", "cluster_grid", "clusters", "reconstruct_after", "expansion", "normalization"}
    said |= {"version", "method"}
    if setting.decode_clusters in (None, setting.usually_decodes_clusters):
        said.add("decode_clusters")  # It is what follows from the rest of the setting.
    names = [f.name for f in fields(setting) if f.name not in said]
    values = {name: getattr(setting, name) for name in names}
    plain = {name: (getattr(TokenClusteringConfig, name),) for name in names}
    plain["mask_shift"] += (MASK_SHIFTS[0],)  # What an open field resolves to is not news in a name.
    plain["similarity_on"] = ("normalized" if setting.adaptive else "tokens",)
    plain["size_attention"] = (setting.adaptive,)
    changed = [f"{name}={value}" for name, value in values.items() if value not in plain[name]]
    return ", ".join([group_name(setting), setting.expansion, *changed])
