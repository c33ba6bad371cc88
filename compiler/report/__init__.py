"""The stand-alone HTML report of an artifact: made from `artifact.json` alone, read anywhere."""
