const RECORDED = {
 "pictures": [
  "pictures/0.png",
  "pictures/1.png",
  "pictures/2.png",
  "pictures/3.png",
  "pictures/4.png",
  "pictures/5.png"
 ],
 "questions": [
  "Describe the picture.",
  "what shape is in the image?",
  "what color is the shape?",
  "is there a blue shape?",
  "is there not a circle in the image?"
 ],
 "levels": 8,
 "answers": {
  "0|0": {
   "said": [
    "a picture of a yellow rectangle",
    "a picture of a yellow rectangle",
    "a shape",
    "a shape",
    "a triangle",
    "a red shape",
    "a red triangle",
    "a red triangle",
    "a red triangle"
   ],
   "weights": [
    0.0003,
    0.0,
    0.0,
    0.0,
    0.0,
    0.0005,
    0.9992,
    1.0
   ]
  },
  "0|1": {
   "said": [
    "triangle",
    "triangle",
    "triangle",
    "triangle",
    "triangle",
    "triangle",
    "triangle",
    "triangle",
    "triangle"
   ],
   "weights": [
    0.0002,
    0.0,
    0.0,
    0.0,
    0.0,
    0.0004,
    0.9994,
    1.0
   ]
  },
  "0|2": {
   "said": [
    "red",
    "red",
    "red",
    "red",
    "red",
    "red",
    "red",
    "red",
    "red"
   ],
   "weights": [
    0.0002,
    0.0,
    0.0,
    0.0,
    0.0,
    0.0004,
    0.9994,
    1.0
   ]
  },
  "0|3": {
   "said": [
    "no",
    "no",
    "no",
    "no",
    "no",
    "no",
    "no",
    "no",
    "no"
   ],
   "weights": [
    0.0001,
    0.0,
    0.0,
    0.0,
    0.0,
    0.0003,
    0.9996,
    1.0
   ]
  },
  "0|4": {
   "said": [
    "yes",
    "yes",
    "yes",
    "yes",
    "yes",
    "yes",
    "yes",
    "yes",
    "yes"
   ],
   "weights": [
    0.0001,
    0.0,
    0.0,
    0.0,
    0.0,
    0.0003,
    0.9996,
    1.0
   ]
  },
  "1|0": {
   "said": [
    "a picture of a teal circle",
    "a picture of a red circle",
    "a picture of a shape",
    "a picture of a shape",
    "a picture of a rectangle",
    "a yellow shape",
    "a yellow rectangle",
    "a yellow rectangle",
    "a yellow rectangle"
   ],
   "weights": [
    0.0,
    0.0,
    0.0,
    0.0,
    0.0,
    0.0,
    1.0,
    1.0
   ]
  },
  "1|1": {
   "said": [
    "rectangle",
    "rectangle",
    "rectangle",
    "rectangle",
    "rectangle",
    "rectangle",
    "rectangle",
    "rectangle",
    "rectangle"
   ],
   "weights": [
    0.0,
    0.0,
    0.0,
    0.0,
    0.0,
    0.0,
    1.0,
    1.0
   ]
  },
  "1|2": {
   "said": [
    "yellow",
    "yellow",
    "yellow",
    "yellow",
    "yellow",
    "yellow",
    "yellow",
    "yellow",
    "yellow"
   ],
   "weights": [
    0.0,
    0.0,
    0.0,
    0.0,
    0.0,
    0.0,
    1.0,
    1.0
   ]
  },
  "1|3": {
   "said": [
    "no",
    "no",
    "no",
    "no",
    "no",
    "no",
    "no",
    "no",
    "no"
   ],
   "weights": [
    0.0,
    0.0,
    0.0,
    0.0,
    0.0,
    0.0,
    1.0,
    1.0
   ]
  },
  "1|4": {
   "said": [
    "yes",
    "yes",
    "yes",
    "yes",
    "yes",
    "yes",
    "yes",
    "yes",
    "yes"
   ],
   "weights": [
    0.0,
    0.0,
    0.0,
    0.0,
    0.0,
    0.0,
    1.0,
    1.0
   ]
  },
  "2|0": {
   "said": [
    "a picture of a black rectangle",
    "a picture of a yellow rectangle",
    "a picture of a shape",
    "a picture of a shape",
    "a picture of a circle",
    "a picture of a brown shape",
    "a brown circle",
    "a brown circle",
    "a brown circle"
   ],
   "weights": [
    0.0,
    0.0,
    0.0,
    0.0,
    0.0,
    0.0,
    1.0,
    1.0
   ]
  },
  "2|1": {
   "said": [
    "circle",
    "circle",
    "circle",
    "circle",
    "circle",
    "circle",
    "circle",
    "circle",
    "circle"
   ],
   "weights": [
    0.0,
    0.0,
    0.0,
    0.0,
    0.0,
    0.0,
    1.0,
    1.0
   ]
  },
  "2|2": {
   "said": [
    "brown",
    "brown",
    "brown",
    "brown",
    "brown",
    "brown",
    "brown",
    "brown",
    "brown"
   ],
   "weights": [
    0.0,
    0.0,
    0.0,
    0.0,
    0.0,
    0.0,
    1.0,
    1.0
   ]
  },
  "2|3": {
   "said": [
    "no",
    "no",
    "no",
    "no",
    "no",
    "no",
    "no",
    "no",
    "no"
   ],
   "weights": [
    0.0,
    0.0,
    0.0,
    0.0,
    0.0,
    0.0,
    1.0,
    1.0
   ]
  },
  "2|4": {
   "said": [
    "no",
    "no",
    "no",
    "no",
    "no",
    "no",
    "no",
    "no",
    "no"
   ],
   "weights": [
    0.0,
    0.0,
    0.0,
    0.0,
    0.0,
    0.0,
    1.0,
    1.0
   ]
  },
  "3|0": {
   "said": [
    "a picture of a black rectangle",
    "a picture of a black rectangle",
    "a shape",
    "a shape",
    "a circle",
    "a blue shape",
    "a blue circle",
    "a blue circle",
    "a blue circle"
   ],
   "weights": [
    0.0005,
    0.0,
    0.0,
    0.0,
    0.0,
    0.0008,
    0.9988,
    1.0
   ]
  },
  "3|1": {
   "said": [
    "circle",
    "circle",
    "circle",
    "circle",
    "circle",
    "circle",
    "circle",
    "circle",
    "circle"
   ],
   "weights": [
    0.0001,
    0.0,
    0.0,
    0.0,
    0.0,
    0.0001,
    0.9998,
    1.0
   ]
  },
  "3|2": {
   "said": [
    "blue",
    "blue",
    "blue",
    "blue",
    "blue",
    "blue",
    "blue",
    "blue",
    "blue"
   ],
   "weights": [
    0.0001,
    0.0,
    0.0,
    0.0,
    0.0,
    0.0002,
    0.9996,
    1.0
   ]
  },
  "3|3": {
   "said": [
    "yes",
    "yes",
    "yes",
    "yes",
    "yes",
    "yes",
    "yes",
    "yes",
    "yes"
   ],
   "weights": [
    0.0,
    0.0,
    0.0,
    0.0,
    0.0,
    0.0,
    0.9999,
    1.0
   ]
  },
  "3|4": {
   "said": [
    "no",
    "no",
    "no",
    "no",
    "no",
    "no",
    "no",
    "no",
    "no"
   ],
   "weights": [
    0.0001,
    0.0,
    0.0,
    0.0,
    0.0,
    0.0001,
    0.9999,
    1.0
   ]
  },
  "4|0": {
   "said": [
    "a picture of a black rectangle",
    "a picture of a black rectangle",
    "a shape",
    "a shape",
    "a picture of a circle",
    "a blue shape",
    "a picture of a blue circle",
    "a blue circle",
    "a blue circle"
   ],
   "weights": [
    0.0001,
    0.0,
    0.0,
    0.0,
    0.0,
    0.0002,
    0.9996,
    1.0
   ]
  },
  "4|1": {
   "said": [
    "circle",
    "circle",
    "circle",
    "circle",
    "circle",
    "circle",
    "circle",
    "circle",
    "circle"
   ],
   "weights": [
    0.0,
    0.0,
    0.0,
    0.0,
    0.0,
    0.0,
    0.9999,
    1.0
   ]
  },
  "4|2": {
   "said": [
    "blue",
    "blue",
    "blue",
    "blue",
    "blue",
    "blue",
    "blue",
    "blue",
    "blue"
   ],
   "weights": [
    0.0,
    0.0,
    0.0,
    0.0,
    0.0,
    0.0001,
    0.9999,
    1.0
   ]
  },
  "4|3": {
   "said": [
    "yes",
    "yes",
    "yes",
    "yes",
    "yes",
    "yes",
    "yes",
    "yes",
    "yes"
   ],
   "weights": [
    0.0,
    0.0,
    0.0,
    0.0,
    0.0,
    0.0,
    1.0,
    1.0
   ]
  },
  "4|4": {
   "said": [
    "no",
    "no",
    "no",
    "no",
    "no",
    "no",
    "no",
    "no",
    "no"
   ],
   "weights": [
    0.0,
    0.0,
    0.0,
    0.0,
    0.0,
    0.0001,
    0.9999,
    1.0
   ]
  },
  "5|0": {
   "said": [
    "a picture of a black rectangle",
    "a picture of a black rectangle",
    "a shape",
    "a shape",
    "a rectangle",
    "a blue shape",
    "a blue rectangle",
    "a blue rectangle",
    "a blue rectangle"
   ],
   "weights": [
    0.0,
    0.0,
    0.0,
    0.0,
    0.0,
    0.0,
    1.0,
    1.0
   ]
  },
  "5|1": {
   "said": [
    "rectangle",
    "rectangle",
    "rectangle",
    "rectangle",
    "rectangle",
    "rectangle",
    "rectangle",
    "rectangle",
    "rectangle"
   ],
   "weights": [
    0.0,
    0.0,
    0.0,
    0.0,
    0.0,
    0.0,
    0.9999,
    1.0
   ]
  },
  "5|2": {
   "said": [
    "blue",
    "blue",
    "blue",
    "blue",
    "blue",
    "blue",
    "blue",
    "blue",
    "blue"
   ],
   "weights": [
    0.0,
    0.0,
    0.0,
    0.0,
    0.0,
    0.0,
    0.9999,
    1.0
   ]
  },
  "5|3": {
   "said": [
    "yes",
    "yes",
    "yes",
    "yes",
    "yes",
    "yes",
    "yes",
    "yes",
    "yes"
   ],
   "weights": [
    0.0,
    0.0,
    0.0,
    0.0,
    0.0,
    0.0001,
    0.9999,
    1.0
   ]
  },
  "5|4": {
   "said": [
    "yes",
    "yes",
    "yes",
    "yes",
    "yes",
    "yes",
    "yes",
    "yes",
    "yes"
   ],
   "weights": [
    0.0,
    0.0,
    0.0,
    0.0,
    0.0,
    0.0,
    1.0,
    1.0
   ]
  }
 },
 "files": null,
 "size": 0
}
