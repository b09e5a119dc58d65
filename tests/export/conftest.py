"""Runs to be exported, trained once."""

from exports import trained as trained
