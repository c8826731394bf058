"""The proof that `python -m harness blame` names the layer where a fault was planted."""
