"""Problems with answers: task files, their records and prompts, and how an output is graded."""
