// Trains beside the page, so that the page stays quick: takes { patches, shape, settings }, posts rows, then "done".

import { training } from "./train.js";
import { Tensor } from "./tensor.js";

self.onmessage = ({ data: { patches, shape, settings } }) => {
  for (const row of training(new Tensor(patches, shape), settings)) self.postMessage(row);
  self.postMessage("done");
};
