// Streams one generation over gRPC: node generate.js HOST:PORT PROMPT
// npm install @grpc/grpc-js @grpc/proto-loader
const path = require("path");
const grpc = require("@grpc/grpc-js");
const loader = require("@grpc/proto-loader");

const root = process.env.PROTO_ROOT || path.join(__dirname, "../..");
const definition = loader.loadSync("protos/expertmesh/v1/generation.proto", {
  includeDirs: [root],
  keepCase: true,
  longs: String,
  oneofs: true,
});
const { GenerationService } = grpc.loadPackageDefinition(definition).expertmesh.v1;

const [address, prompt] = process.argv.slice(2);
const client = new GenerationService(address, grpc.credentials.createInsecure());
const call = client.GenerateStream({
  text: prompt,
  sampling: { seed: 7 },
  stopping: { max_tokens: 20 },
});
call.on("data", (event) => {
  if (event.event === "delta") process.stdout.write(event.delta.text);
  if (event.event === "summary") console.log(`\n${event.summary.usage.completion_tokens} tokens`);
});
call.on("error", (error) => {
  console.error(`${grpc.status[error.code]}: ${error.details}`);
  process.exitCode = 1;
});
