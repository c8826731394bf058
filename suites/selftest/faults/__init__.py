"""Faults where real projects had them, and the proof that each is caught."""
