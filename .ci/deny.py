#!/usr/bin/env python3
"""Checks dependencies against deny.toml, offline: licences, banned crates, sources.

A stand-in for `cargo deny check bans licenses sources` where cargo-deny is not installed.
"""
import json
import re
import subprocess
import sys
import tomllib

rules = tomllib.load(open("deny.toml", "rb"))
host = re.search(r"host: (\S+)", subprocess.run(["rustc", "-vV"], capture_output=True, text=True).stdout)[1]
command = ["cargo", "metadata", "--format-version=1", "--locked", "--offline", "--filter-platform", host]
metadata = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
allowed = set(rules["licenses"]["allow"])
banned = {rule["crate"] for rule in rules["bans"]["deny"]}
# Only what is resolved for the workspace: optional dependencies that are off are not there.
resolved = {node["id"] for node in metadata["resolve"]["nodes"]}
packages = [package for package in metadata["packages"] if package["id"] in resolved]


def is_allowed(expression):
    """An SPDX expression holds if its words do; `/` is an old way to write OR."""
    words = re.findall(r"\(|\)|[\w.+-]+(?: WITH [\w.-]+)?", expression.replace("/", " OR "))
    python = {"AND": "and", "OR": "or", "(": "(", ")": ")"}
    return eval(" ".join(python.get(word) or str(word.removesuffix('+') in allowed) for word in words), {})


faults = []
for package in packages:
    name = f"{package['name']} {package['version']}"
    if package["name"] in banned:
        faults.append(f"{name} is banned by deny.toml")
    license = package.get("license")
    if not license and not package.get("license_file"):
        faults.append(f"{name} has no licence")
    elif license and not is_allowed(license):
        faults.append(f"{name} has the licence {license}, which deny.toml does not allow")
    source = package.get("source")
    if source and not source.startswith("registry+"):
        faults.append(f"{name} comes from {source}")

print("\n".join(faults) or f"{len(packages)} packages: licences, bans and sources are as deny.toml says")
sys.exit(bool(faults))
