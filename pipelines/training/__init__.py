"""What training and evaluating a run share: the run, its data as batches, its workers and servers, its finished row."""
