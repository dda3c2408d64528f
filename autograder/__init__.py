"""The instructor's package: builds the learners' notebooks, grades them, reports."""
