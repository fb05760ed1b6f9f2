// The stock client, told what to do over stdin and telling what happened over stdout, one JSON object a line.
//
//   {"cmd": "open", "key", "rpc", "asset"?}  a client with empty storage, which forgets the one before it
//   {"cmd": "pay", "url", "count"}           requests one after another
//   {"cmd": "parallel", "url", "count"}      requests all at once
//   {"cmd": "lose", "url"}                   one request whose paid answer is lost on the way back
//   {"cmd": "stream", "url"}                 one request; a line {"chunk"} for every piece as it arrives
//   {"cmd": "refund", "url", "amount"?}      gives the channel's rest, or an amount of it, back
//
// Every command is answered by one line: {"answers": [...]}, or {"failed"} when the driver itself could not go on. An
// answer tells what the application saw and every exchange below it. Nothing of the client is changed or configured: the
// default storage, deposits and spend controls are what is tested. Only a token that it does not know (`asset`) has to be
// allowed, as every user of one has to.

import { createInterface } from "node:readline";
import { decodePaymentRequiredHeader, decodePaymentResponseHeader, decodePaymentSignatureHeader } from "@x402/core/http";
import { toClientEvmSigner } from "@x402/evm";
import { BatchSettlementEvmScheme } from "@x402/evm/batch-settlement/client";
import { wrapFetchWithPayment, x402Client } from "@x402/fetch";
import { createPublicClient, http } from "viem";
import { privateKeyToAccount } from "viem/accounts";
import { baseSepolia } from "viem/chains";

const say = line => process.stdout.write(`${JSON.stringify(line)}\n`);

let scheme;
let client;

function open({ key, rpc, asset }) {
  const node = createPublicClient({ chain: baseSepolia, transport: http(rpc) });
  scheme = new BatchSettlementEvmScheme(toClientEvmSigner(privateKeyToAccount(key), node));
  const network = `eip155:${baseSepolia.id}`;
  client = new x402Client().register(network, scheme);
  if (asset !== undefined) client.setSpendControls({ allowedAssets: [{ network, asset }] });
  return [];
}

/** A fetch that notes what goes over the wire, and may lose the answers to payments. */
function noting(exchanges, lossy = false) {
  return async (input, init) => {
    const request = new Request(input, init);
    const exchange = sent(request.headers.get("PAYMENT-SIGNATURE"));
    exchanges.push(exchange);
    const response = await fetch(request);
    Object.assign(exchange, received(response));
    if (lossy && exchange.sent !== "nothing") {
      await response.arrayBuffer();
      throw new TypeError("the connection was lost");
    }
    return response;
  };
}

function sent(header) {
  if (header === null) return { sent: "nothing" };
  const { payload, extensions } = decodePaymentSignatureHeader(header);
  const permit = extensions?.eip2612GasSponsoring?.info?.signature !== undefined;
  return { sent: payload.type, max: payload.voucher.maxClaimableAmount, deposit: payload.deposit?.amount, permit };
}

function received(response) {
  const { status } = response;
  const header = response.headers.get("PAYMENT-REQUIRED");
  if (header === null) return { status };
  const { error, accepts } = decodePaymentRequiredHeader(header);
  const { channelState, voucherState } = accepts[0].extra;
  return { status, error, corrective: channelState !== undefined, voucherShown: voucherState !== undefined };
}

/** One paid request. What the client throws is an answer too. */
async function ask(url, read = response => response.text(), lossy = false) {
  const exchanges = [];
  try {
    const response = await wrapFetchWithPayment(noting(exchanges, lossy), client)(url);
    const receipt = response.headers.get("PAYMENT-RESPONSE");
    const body = await read(response);
    return { status: response.status, body, receipt: receipt && decodePaymentResponseHeader(receipt), exchanges };
  } catch (error) {
    return { thrown: String(error?.message ?? error), exchanges };
  }
}

async function pay({ url, count }) {
  const answers = [];
  for (let number = 0; number < count; number += 1) answers.push(await ask(url));
  return answers;
}

const parallel = ({ url, count }) => Promise.all(Array.from({ length: count }, () => ask(url)));

const lose = async ({ url }) => [await ask(url, undefined, true)];

async function stream({ url }) {
  const read = async response => {
    let whole = "";
    const decoder = new TextDecoder();
    for await (const bytes of response.body) {
      const chunk = decoder.decode(bytes, { stream: true });
      whole += chunk;
      say({ chunk });
    }
    return whole;
  };
  return [await ask(url, read)];
}

async function refund({ url, amount }) {
  const exchanges = [];
  try {
    return [{ receipt: await scheme.refund(url, { amount, fetch: noting(exchanges) }), exchanges }];
  } catch (error) {
    return [{ thrown: String(error?.message ?? error), exchanges }];
  }
}

const commands = { open, pay, parallel, lose, stream, refund };

for await (const line of createInterface({ input: process.stdin })) {
  const order = JSON.parse(line);
  try {
    say({ answers: await commands[order.cmd](order) });
  } catch (error) {
    say({ failed: String(error?.stack ?? error) });
  }
}
