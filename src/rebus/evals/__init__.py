"""Figures about a system: every task is a function that is handed an Exam and yields figures and samples."""
