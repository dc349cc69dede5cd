"""Rows of files and datasets, in any of the forms they may have."""

from tokenclean.pool.reading.hub_datasets import read_hub
from tokenclean.pool.reading.record import Record
from tokenclean.pool.reading.records import read_records

__all__ = ["Record", "read_hub", "read_records"]
