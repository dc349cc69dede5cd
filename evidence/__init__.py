"""The paper's experiment and ours, cell by cell: what is measured here is what README and docs say."""
