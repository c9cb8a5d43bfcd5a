"""The papers' tables: their numbers and what each of them is measured by (one YAML file each), and what measures it."""
