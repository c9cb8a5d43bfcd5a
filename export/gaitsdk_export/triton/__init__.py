"""Serving with Triton: the model repository (`repository`), its configurations (`config`), the server (`server`).

`backend` and `python_models/` run inside the server.
"""
