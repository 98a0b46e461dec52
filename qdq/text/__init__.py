"""Texts and labels from files, and their token ids."""
