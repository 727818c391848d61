"""``python -m lightning_rarlhf.certify``: is a claim on a policy's tail shown by fresh prompts? docs/certify.md."""
