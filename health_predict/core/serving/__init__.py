"""A fitted model as tables and a graph, which serving needs no training library for."""
