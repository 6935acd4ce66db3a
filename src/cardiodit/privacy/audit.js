// The pairs play like the samples of an evaluation (players.js); nothing else on the page moves.

startPage(startPlaying);
