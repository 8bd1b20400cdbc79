// Puts a study's fresh figures in place of the old ones every few seconds; everything works without it.

import { Live } from "./live.js";

const live = new Live(document.getElementById("figures"), document.getElementById("live"));
live.every(5000, () => live.replace());
