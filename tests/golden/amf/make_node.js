// Makes node.json: run it with node where the package of README.rst is installed (NODE_PATH).
"use strict";
const fs = require("fs");
const path = require("path");
const { AMF3 } = require("amf3-ts");

const mixed = ["dense"];
mixed.named = 1;

// Name, value for amf3-ts, what rtmpd is to decode. amf3-ts can write no negative int.
const vectors = [
    ["vector of int", Int32Array.from([0, 1, 2147483647]), [0, 1, 2147483647]],
    ["vector of uint", Uint32Array.from([0, 1, 4294967295]), [0, 1, 4294967295]],
    ["vector of double", Float64Array.from([0.5, -1.25]), [0.5, -1.25]],
    ["object", { a: 1, b: "two", c: [true, null] }, { a: 1, b: "two", c: [true, null] }],
    ["mixed array", mixed, { "!": "ecma", members: { named: 1, 0: "dense" } }],
].map(([name, value, expected]) => ({
    name, amf: 3, hex: Buffer.from(AMF3.stringify(value)).toString("hex"), values: [expected],
}));

const text = "[\n" + vectors.map((vector) => JSON.stringify(vector)).join(",\n") + "\n]\n";
fs.writeFileSync(path.join(__dirname, "node.json"), text);
