"""Rows out of files and datasets, in whatever form they lie."""

from tokenclean.pool.reading.hub_datasets import read_hub
from tokenclean.pool.reading.record import Record
from tokenclean.pool.reading.records import read_records

__all__ = ["Record", "read_hub", "read_records"]
