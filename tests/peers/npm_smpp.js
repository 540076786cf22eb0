'use strict';
// The npm package `smpp` at the end of a string: commands come in and events go out, one JSON object a line.
// It answers what the protocol wants answered; everything else is decided by the test (node.py).
//
//   in   {do: "listen"}  {do: "connect", port}  {do: "password", value}  {do: "answer", statuses: [88, ...]}
//        {do: "send", session, command, fields}
//   out  {event: "listening", port}  {event: "session", session}  {event: "close", session}
//        {event: "error", text}  {event: "request" | "response" | "sent", session, pdu}
//
// Bytes are {hex: "0500..."} on the way in and Buffer's own JSON on the way out.

const readline = require('readline');
const smpp = require('smpp');

const sessions = [];
const statuses = []; // of the next messages that arrive; then ESME_ROK
let password = 'secret';
let lastMessage = 0;

const tell = (event) => process.stdout.write(JSON.stringify(event) + '\n');

function answer(pdu) {
  if (/^bind_/.test(pdu.command)) {
    if (pdu.password !== password) return { command_status: smpp.ESME_RINVPASWD };
    return { system_id: 'npm-smpp', sc_interface_version: 0x34 };
  }
  if (pdu.command === 'submit_sm' || pdu.command === 'deliver_sm') {
    const status = statuses.shift() || smpp.ESME_ROK;
    if (status !== smpp.ESME_ROK) return { command_status: status };
    return pdu.command === 'submit_sm' ? { message_id: String(++lastMessage + 1000000) } : {};
  }
  return {};
}

function attach(session) {
  const number = sessions.push(session) - 1;
  session.on('pdu', (pdu) => {
    tell({ event: pdu.isResponse() ? 'response' : 'request', session: number, pdu });
    if (!pdu.isResponse()) session.send(pdu.response(answer(pdu)));
  });
  session.on('close', () => tell({ event: 'close', session: number }));
  session.on('error', (error) => tell({ event: 'error', text: String(error) }));
  tell({ event: 'session', session: number });
}

const commands = {
  listen() {
    const server = smpp.createServer(attach);
    server.listen(0, '127.0.0.1', () => tell({ event: 'listening', port: server.address().port }));
  },
  connect({ port }) {
    const session = smpp.connect({ host: '127.0.0.1', port }, () => attach(session));
  },
  password({ value }) {
    password = value;
  },
  answer(command) {
    statuses.push(...command.statuses);
  },
  send({ session, command, fields }) {
    const pdu = new smpp.PDU(command, fields);
    sessions[session].send(pdu, undefined, () => tell({ event: 'sent', session, pdu }));
  },
};

const bytes = (key, value) => (value && value.hex !== undefined ? Buffer.from(value.hex, 'hex') : value);

readline.createInterface({ input: process.stdin })
  .on('line', (line) => {
    const command = JSON.parse(line, bytes);
    commands[command.do](command);
  })
  .on('close', () => process.exit(0));
