"""What a table or figure needs beyond a run's own scores; one module for each."""
