"""What is done with a finished run: its status, exports, merged models and pages."""
