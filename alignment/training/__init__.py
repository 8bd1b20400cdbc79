"""Trainers: frozen pairs and settings go in, an adapter and its history come out."""
